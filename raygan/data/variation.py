"""How much photos of a class differ from each other in layout, which decides whether a GAN will learn them.

The measure: each photo becomes a map of edge directions (8 by 8 cells, 8 directions, a histogram of oriented
gradients after Dalal and Triggs 2005), scaled to the same strength in every cell and freed of each direction's
mean, so that only what is where remains. The variation of a class is 1 minus the mean correlation between the
maps of two photos, over all pairs.

    0      all photos have the same layout
    0.9    faces cut alike: cat faces 0.88 to 0.90, dog faces 0.93
    0.98   whole animals in any pose, cats and dogs alike
    1      no two photos have anything in common

Brightness, colour and coat don't count, so it tells a well-cut class of many breeds from a badly cut one. The
distance of photos in an ImageNet network's features doesn't: it puts dog faces (0.68) above whole dogs (0.65),
since it sees breeds. Neither does the correlation of thumbnails, where dark and light coats cancel out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Cells along a side, and edge directions in each.
CELLS, DIRECTIONS = 8, 8

#: Numbers in a layout map.
LENGTH = CELLS * CELLS * DIRECTIONS

#: Side in pixels of the grey picture that edges are taken from.
_SIDE = 64

#: Variation above which a class is likely to be whole scenes; between those of faces and whole animals.
HIGH = 0.955


def layouts(pixels: np.ndarray) -> np.ndarray:
    """Layout maps of photos (n, S, S, 3) uint8: float32 (n, LENGTH), each a unit vector."""
    maps = np.stack([_edges(np.asarray(_grey(photo), np.float32)) for photo in pixels])
    maps /= np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-3
    maps -= maps.mean(axis=(1, 2), keepdims=True)
    flat = maps.reshape(len(pixels), -1)
    unit: np.ndarray = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-9)
    return unit


def variation(total: np.ndarray, count: int) -> float | None:
    """Variation from the sum of `count` layout maps; None for fewer than two.

    The squared length of a sum of unit vectors is their number plus the correlation of every ordered pair, so
    the mean over all pairs needs no pair to be looked at.
    """
    if count < 2:
        return None
    return float(1 - (total @ total - count) / (count * (count - 1)))


def _grey(photo: np.ndarray) -> Image.Image:
    return Image.fromarray(photo).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _edges(grey: np.ndarray) -> np.ndarray:
    """Strength of edges in each cell and direction: (CELLS, CELLS, DIRECTIONS)."""
    down, across = np.gradient(grey)
    angle = np.arctan2(down, across) * (DIRECTIONS / np.pi)
    direction = np.floor(angle).astype(np.int64) % DIRECTIONS
    cell = np.arange(_SIDE) * CELLS // _SIDE
    place = (cell[:, None] * CELLS + cell) * DIRECTIONS + direction
    sums = np.bincount(place.ravel(), np.hypot(across, down).ravel(), minlength=LENGTH)
    return (sums * (CELLS / _SIDE) ** 2).reshape(CELLS, CELLS, DIRECTIONS).astype(np.float32)
