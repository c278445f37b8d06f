"""Variation: how much the photos of a class differ in layout, which decides whether a GAN can learn them.

Each photo becomes a map of edge directions (8 x 8 cells, 8 directions: a histogram of oriented gradients after Dalal
and Triggs 2005). Every cell is scaled to the same strength, and each direction's mean is subtracted, so that only the
layout remains. The variation of a class is 1 minus the mean correlation between the maps of two photos, over all
pairs:

    0      all photos have the same layout
    0.9    aligned faces: cats 0.88 to 0.90, dogs 0.93
    0.98   whole animals in any pose, cats and dogs alike
    1      no two photos have anything in common

Brightness, color and coat don't count, so the measure tells a well-aligned class of many breeds from a badly aligned
one. Distances in an ImageNet network's features don't: they rank dog faces (0.68) above whole dogs (0.65) because the
network sees breeds. Nor do correlations of thumbnails, where dark and light coats cancel out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Cells along a side, and edge directions per cell.
CELLS, DIRECTIONS = 8, 8

#: Numbers in a layout map.
LENGTH = CELLS * CELLS * DIRECTIONS

#: Side in px of the gray picture in which edges are found.
_SIDE = 64

#: Classes above this variation are probably whole scenes: it lies between faces and whole animals.
HIGH = 0.955


def layouts(pixels: np.ndarray) -> np.ndarray:
    """Layout maps of photos, uint8 (n, S, S, 3): unit vectors, float32 (n, LENGTH)."""
    maps = np.stack([_edges(np.asarray(_gray(photo), np.float32)) for photo in pixels])
    maps /= np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-3
    maps -= maps.mean(axis=(1, 2), keepdims=True)
    flat = maps.reshape(len(pixels), -1)
    unit: np.ndarray = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-9)
    return unit


def variation(total: np.ndarray, count: int) -> float | None:
    """Variation of `count` photos, 0 to about 1; None for fewer than two.

    The squared length of a sum of unit vectors is their number plus the correlations of all ordered pairs, so the mean
    over all pairs follows from the sum alone.

    Args:
        total: sum of their layout maps, (LENGTH,).
    """
    if count < 2:
        return None
    return float(1 - (total @ total - count) / (count * (count - 1)))


def _gray(photo: np.ndarray) -> Image.Image:
    return Image.fromarray(photo).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _edges(gray: np.ndarray) -> np.ndarray:
    """Strength of the edges in each cell and direction: (CELLS, CELLS, DIRECTIONS)."""
    down, across = np.gradient(gray)
    angle = np.arctan2(down, across) * (DIRECTIONS / np.pi)
    direction = np.floor(angle).astype(np.int64) % DIRECTIONS
    cell = np.arange(_SIDE) * CELLS // _SIDE
    place = (cell[:, None] * CELLS + cell) * DIRECTIONS + direction
    sums = np.bincount(place.ravel(), np.hypot(across, down).ravel(), minlength=LENGTH)
    return (sums * (CELLS / _SIDE) ** 2).reshape(CELLS, CELLS, DIRECTIONS).astype(np.float32)
