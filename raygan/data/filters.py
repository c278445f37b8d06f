"""The filters that look at one photo alone, and the measures they judge by.

`look` takes a file's bytes through those that need no measures, cheapest first, and `judge` through the rest, many
photos at a time; the first filter that objects gives the reason. Filters that compare photos with each other
are in `raygan.data.duplicates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import imagehash
import numpy as np
from PIL import Image

from raygan.data.decode import Fit, Unreadable, decode, pixel_hash, read_header, to_square

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

#: Side in pixels of the view that the perceptual hash is taken from.
HASHED = 32

#: Views that are measured at a time: as many as stay in a core's cache with what is computed from them.
_VIEWS = 32


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
    """What is known of one photo.

    reason: why it is rejected, or None. score: the measure that the reason is about. Sizes are in pixels, as
    stored, or of the face that was cut out; 0 where the file is no image. Measures are NaN and `pixels` None where
    nothing was decoded. phash: 64 bits. pixels: uint8 (S, S, 3). large: uint8 (L, L, 3), the same square for a
    network to look at, if it was asked for and the photo isn't rejected. view: grey levels uint8 (VIEW, VIEW) that
    `judge` measures, and then takes away.
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
    view: Image.Image | None = None


def examine(
    data: bytes,
    size: int,
    fit: Fit,
    limits: Limits,
    *,
    large: int | None = None,
    cut_face: Callable[[Image.Image], Image.Image | None] | None = None,
) -> Photo:
    """All there is to know of one file: `look` and `judge` in one."""
    return judge([look(data, size, fit, limits, large=large, cut_face=cut_face)], limits)[0]


def look(
    data: bytes,
    size: int,
    fit: Fit,
    limits: Limits,
    *,
    large: int | None = None,
    cut_face: Callable[[Image.Image], Image.Image | None] | None = None,
) -> Photo:
    """Decode one file to a square of `size` pixels, not measured yet. Never raises for what the bytes are.

    large: side in pixels of `Photo.large`. cut_face: see `raygan.data.faces`; the face is what is judged then.
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
    face = cut_face(photo) if cut_face is not None else photo
    cut = photo if face is None else face
    square = to_square(cut, size, fit)
    view = square if size == VIEW else to_square(cut, VIEW, fit)
    return Photo(
        reason="no_face" if face is None else None,
        width=cut.width,
        height=cut.height,
        hash=identity,
        pixels=np.asarray(square),
        large=None if large is None or face is None else np.asarray(to_square(cut, large, fit)),
        view=view.convert("L"),
    )


def judge(photos: Sequence[Photo], limits: Limits) -> list[Photo]:
    """The same photos with measures, and with a reason where the measures object.

    Many at a time, because NumPy's calls take longer than the arithmetic on one view.
    """
    judged = list(photos)
    seen = [(number, photo.view) for number, photo in enumerate(photos) if photo.view is not None]
    for start in range(0, len(seen), _VIEWS):
        part = seen[start : start + _VIEWS]
        grey = np.stack([np.asarray(view) for _, view in part]).astype(np.float32)
        brightness, contrast, detail = grey.mean(axis=(1, 2)), _deviations(grey), sharpness(grey)
        measured = zip(part, brightness.tolist(), contrast.tolist(), detail.tolist(), strict=True)
        for (number, view), light, spread, sharp in measured:
            judged[number] = _judged(photos[number], limits, light, spread, sharp, perceptual_hash(view))
    return judged


def sharpness(grey: np.ndarray) -> np.ndarray:
    """Strength of fine detail in grey levels (n, h, w) of 0 to 255: (n,) from 0 to about 3, whatever the contrast.

    Standard deviation of the Laplacian (the usual focus measure, Pech-Pacheco et al. 2000) over that of the
    grey levels themselves. In 64 px views photos in focus have 0.3 to 1.2, hopelessly blurred ones under 0.1.
    """
    inner = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] - 4 * inner
    # Rounding to whole levels alone gives the Laplacian a variance of (4² + 4) / 12, which isn't detail.
    variance = np.maximum(_deviations(laplacian) ** 2 - 20 / 12, 0)
    found: np.ndarray = np.sqrt(variance) / np.maximum(_deviations(grey), 1e-3)
    return found


def perceptual_hash(view: Image.Image) -> bytes:
    """`imagehash.phash` of a grey view: 8 bytes, a bit for each of 8 by 8 low frequencies."""
    # Halved first: imagehash shrinks to 32 px itself, but with a filter that takes longer than all the rest.
    return np.packbits(imagehash.phash(view.reduce(VIEW // HASHED)).hash).tobytes()


def _deviations(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each (h, w) of (n, h, w)."""
    flat = values.reshape(len(values), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    found: np.ndarray = np.sqrt(np.einsum("ij,ij->i", centred, centred) / flat.shape[1])
    return found


def _judged(photo: Photo, limits: Limits, brightness: float, contrast: float, detail: float, phash: bytes) -> Photo:
    reason, score, unit = photo.reason, photo.score, photo.detail
    if reason is None and limits.min_contrast is not None and contrast < limits.min_contrast:
        reason, score, unit = "flat", contrast, "standard deviation of grey levels"
    elif reason is None and limits.min_sharpness is not None and detail < limits.min_sharpness:
        reason, score, unit = "blurry", detail, "sharpness"
    return replace(
        photo,
        reason=reason,
        score=score,
        detail=unit,
        brightness=brightness,
        contrast=contrast,
        sharpness=detail,
        phash=phash,
        large=photo.large if reason is None else None,
        view=None,
    )
