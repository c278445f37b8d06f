"""The filters that look at one photo alone, and the measures they judge by.

`examine` takes a file's bytes through them, cheapest first; the first that objects gives the reason. Filters
that compare photos with each other are in `raygan.photos.compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import imagehash
import numpy as np
from PIL import Image

from raygan.photos.decode import Fit, Unreadable, decode, pixel_hash, read_header, to_square

Reason = Literal[
    "unreadable",
    "too_small",
    "too_large",
    "bad_aspect",
    "no_face",
    "flat",
    "blurry",
    "duplicate",
    "near_duplicate",
    "outlier",
]
Skippable = Literal["too_small", "too_large", "bad_aspect", "flat", "blurry", "duplicate", "near_duplicate", "outlier"]

#: Reasons that are about another photo, which is kept.
PAIRED = ("duplicate", "near_duplicate")

#: Side in pixels of the view that brightness, contrast, sharpness and the perceptual hash are taken from. One
#: size for all, so that thresholds mean the same for thumbnails and for 50-megapixel photos.
VIEW = 64


@dataclass(frozen=True)
class Limits:
    """What a photo must keep to. A value of None switches the filter off.

    min_side: pixels. max_megapixels: millions of pixels. max_aspect: long side over short side.
    min_contrast: standard deviation of grey levels, 0 to 127. min_sharpness: see `sharpness`.
    """

    min_side: int | None
    max_megapixels: float | None
    max_aspect: float | None
    min_contrast: float | None
    min_sharpness: float | None


@dataclass(frozen=True)
class Photo:
    """What is known of one photo after `examine`.

    reason: why it is rejected, or None. score: the measure that the reason is about. Sizes are in pixels, as
    stored, or of the face that was cut out; 0 where the file is no image. Measures are NaN and `pixels` None where
    nothing was decoded. phash: 64 bits. pixels: uint8 (S, S, 3). large: uint8 (L, L, 3), the same square for a
    network to look at, if it was asked for and the photo isn't rejected.
    """

    reason: Reason | None = None
    score: float = float("nan")
    detail: str = ""
    width: int = 0
    height: int = 0
    brightness: float = float("nan")
    contrast: float = float("nan")
    sharpness: float = float("nan")
    hash: str = ""
    phash: bytes = b""
    pixels: np.ndarray | None = None
    large: np.ndarray | None = None


def examine(
    data: bytes,
    size: int,
    fit: Fit,
    limits: Limits,
    *,
    large: int | None = None,
    cut_face: Callable[[Image.Image], Image.Image | None] | None = None,
) -> Photo:
    """Decode one file to a square of `size` pixels and judge it. Never raises for what the bytes are.

    large: side in pixels of `Photo.large`. cut_face: see `raygan.photos.faces`; the face is what is judged then.
    """
    try:
        header = read_header(data)
        known = Photo(width=header.width, height=header.height)
        side = min(header.width, header.height)
        if limits.max_megapixels is not None and header.megapixels > limits.max_megapixels:
            return replace(known, reason="too_large", score=header.megapixels, detail="megapixels")
        if limits.min_side is not None and side < limits.min_side:
            return replace(known, reason="too_small", score=side, detail="pixels on the short side")
        if limits.max_aspect is not None and header.aspect > limits.max_aspect:
            return replace(known, reason="bad_aspect", score=header.aspect, detail="long side over short side")
        photo = decode(header)
    except Unreadable as error:
        return Photo("unreadable", detail=str(error))
    identity = pixel_hash(photo)
    if cut_face is not None:
        face = cut_face(photo)
        if face is None:
            return replace(
                _measure(photo, identity, size, fit, limits), reason="no_face", score=float("nan"), detail=""
            )
        photo = face
    measured = _measure(photo, identity, size, fit, limits)
    if large is None or measured.reason is not None:
        return measured
    return replace(measured, large=np.asarray(to_square(photo, large, fit)))


def sharpness(grey: np.ndarray) -> float:
    """Strength of fine detail in grey levels (h, w) of 0 to 255, from 0 to about 3, whatever the photo's contrast.

    Standard deviation of the Laplacian (the usual focus measure, Pech-Pacheco et al. 2000) over that of the
    grey levels themselves. In 64 px views photos in focus have 0.3 to 1.2, hopelessly blurred ones under 0.1.
    """
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    # Rounding to whole levels alone gives the Laplacian a variance of (4² + 4) / 12, which isn't detail.
    variance = max(_deviation(laplacian) ** 2 - 20 / 12, 0.0)
    return float(variance**0.5 / max(_deviation(grey), 1e-3))


def _deviation(values: np.ndarray) -> float:
    """Standard deviation; for small arrays several times as fast as numpy's own."""
    flat = values.ravel()
    centred = flat - flat.sum() / len(flat)
    return float((centred @ centred / len(flat)) ** 0.5)


def _measure(photo: Image.Image, identity: str, size: int, fit: Fit, limits: Limits) -> Photo:
    square = to_square(photo, size, fit)
    view = square if size == VIEW else to_square(photo, VIEW, fit)
    grey_view = view.convert("L")
    grey = np.asarray(grey_view, dtype=np.float32)
    contrast, detail = _deviation(grey), sharpness(grey)
    reason: Reason | None = None
    score, unit = float("nan"), ""
    if limits.min_contrast is not None and contrast < limits.min_contrast:
        reason, score, unit = "flat", contrast, "standard deviation of grey levels"
    elif limits.min_sharpness is not None and detail < limits.min_sharpness:
        reason, score, unit = "blurry", detail, "sharpness"
    return Photo(
        reason,
        score,
        unit,
        photo.width,
        photo.height,
        float(grey.mean()),
        contrast,
        detail,
        identity,
        np.packbits(imagehash.phash(grey_view).hash).tobytes(),
        np.asarray(square),
    )
