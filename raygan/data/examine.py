"""From the bytes of a file to a judged `Photo`: decode, crop to a square, measure, filter.

`look` decodes one file and applies the filters that need no measures. `judge` measures many photos at once and
applies the others. The first filter to object gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import imagehash
import numpy as np
from PIL import Image

from raygan.data.decode import Fit, Unreadable, decode, pixel_hash, read_header, shrinks, to_square
from raygan.data.filters import Photo, Rules

#: Side in px of the view that is measured: the same for thumbnails and 50-megapixel photos, so that a threshold
#: means the same for both.
VIEW = 64

#: Side in px of the square given to the feature network, and the largest that most settings make.
LARGEST = 128

#: Short side in px that a JPEG keeps at least in the decoding that is hashed, whatever the settings. The same photo
#: then has the same hash, and is held out in all data sets or in none: one may begin from another's generator.
_HASHED_SIDE = 2 * LARGEST

#: Side in px of the view that is hashed.
HASHED = 32

#: Views measured at a time: few enough to stay in a core's cache along with the intermediate results.
_VIEWS = 32


def look(
    data: bytes,
    size: int,
    fit: Fit,
    rules: Rules,
    *,
    large: int | None = None,
    cut_face: Callable[[Image.Image], Image.Image | None] | None = None,
) -> Photo:
    """Decode one file to a square. Never raises, whatever the bytes are.

    Args:
        data: the file's content.
        size: side of `Photo.pixels`, in px.
        fit: crop to the center square, or pad.
        rules: the filters in use.
        large: side of `Photo.large`, in px; None for none.
        cut_face: crops a photo to its face (see `raygan.data.faces`); the face is then judged in the photo's place.
    """
    try:
        header = read_header(data)
        objection = rules.objection(lambda each: each.of_header(header, rules.limits))
        if objection:
            return Photo(width=header.width, height=header.height, **objection)
        # A detector gets the whole photo; the rest needs no more than twice the squares' size.
        least = None if cut_face else 2 * max(size, large or 0, LARGEST)
        photo = decode(header, least)
        again = least != _HASHED_SIDE and shrinks(header, _HASHED_SIDE)
        identity = pixel_hash(decode(read_header(data), _HASHED_SIDE) if again else photo)
    except Unreadable as error:
        return Photo("unreadable", detail=str(error))
    face = cut_face(photo) if cut_face is not None else photo
    cut = photo if face is None else face
    width, height = header.upright(photo) if cut is photo else cut.size
    square = to_square(cut, size, fit)
    view = square if size == VIEW else to_square(cut, VIEW, fit)
    return Photo(
        reason="no_face" if face is None else None,
        width=width,
        height=height,
        hash=identity,
        pixels=np.asarray(square),
        large=None if large is None or face is None else np.asarray(to_square(cut, large, fit)),
        view=view.convert("L"),
    )


def judge(photos: Sequence[Photo], rules: Rules) -> list[Photo]:
    """Measure the photos and apply the filters on decoded photos.

    Photos are measured many at a time because a NumPy call costs more than the arithmetic on one view.
    """
    judged = list(photos)
    seen = [(number, photo.view) for number, photo in enumerate(photos) if photo.view is not None]
    for start in range(0, len(seen), _VIEWS):
        part = seen[start : start + _VIEWS]
        gray = np.stack([np.asarray(view) for _, view in part]).astype(np.float32)
        measures = gray.mean(axis=(1, 2)), _deviations(gray), sharpness(gray)
        for (number, view), brightness, contrast, detail in zip(part, *map(np.ndarray.tolist, measures), strict=True):
            measured = replace(
                photos[number],
                brightness=brightness,
                contrast=contrast,
                sharpness=detail,
                phash=perceptual_hash(view),
                view=None,
            )
            judged[number] = _filtered(measured, rules)
    return judged


def _filtered(photo: Photo, rules: Rules) -> Photo:
    objection = {} if photo.reason else rules.objection(lambda each: each.of_photo(photo, rules.limits))
    return replace(photo, **objection, large=None) if objection else photo


def sharpness(gray: np.ndarray) -> np.ndarray:
    """Strength of fine detail, whatever the contrast.

    The standard deviation of the Laplacian (the usual focus measure, Pech-Pacheco et al. 2000) over that of the gray
    levels. In 64 px views, photos in focus have 0.3 to 1.2, hopelessly blurred ones less than 0.1.

    Args:
        gray: (n, h, w), 0 to 255.

    Returns:
        (n,), 0 to about 3.
    """
    inner = gray[:, 1:-1, 1:-1]
    laplacian = gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:] + gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] - 4 * inner
    # Rounding to whole levels alone gives the Laplacian a variance of (4² + 4) / 12, which is noise, not detail.
    variance = np.maximum(_deviations(laplacian) ** 2 - 20 / 12, 0)
    found: np.ndarray = np.sqrt(variance) / np.maximum(_deviations(gray), 1e-3)
    return found


def perceptual_hash(view: Image.Image) -> bytes:
    """`imagehash.phash` of a gray view: 8 bytes, one bit for each of 8 x 8 low frequencies."""
    # Halved first: imagehash would shrink to 32 px itself, with a filter that takes longer than everything else.
    return np.packbits(imagehash.phash(view.reduce(VIEW // HASHED)).hash).tobytes()


def _deviations(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each (h, w) of (n, h, w)."""
    flat = values.reshape(len(values), -1)
    centered = flat - flat.mean(axis=1, keepdims=True)
    found: np.ndarray = np.sqrt(np.einsum("ij,ij->i", centered, centered) / flat.shape[1])
    return found
