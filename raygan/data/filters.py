"""Filters: the reasons to reject a photo.

A `Filter` judges one photo at a time. It can judge by the size of the file, by the image header, or by the decoded
photo; it overrides the cheapest of these methods that suffices. A `Comparison` needs other photos too:
`raygan.data.duplicates` and `raygan.data.outliers` do its work once all photos are decoded, so the class only
describes its scores. `Rules` applies the filters in use. Names are in `raygan.data.registry`, and packages can offer
more through the entry point group ``raygan.filters``. Thresholds are `Limits` in `raygan.data.settings`. Two reasons
need no filter: ``unreadable`` and ``no_face`` come from reading and cutting a photo (`contents` and `examine`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from raygan.data.decode import Header
from raygan.data.registry import FILTERS
from raygan.data.settings import Limits

#: A score and what it measures, such as ``(24, "pixels on the short side")``.
Objection = tuple[float, str]


@dataclass(frozen=True)
class Photo:
    """What is known about one photo.

    Attributes:
        reason: why it is rejected: the name of a filter, ``unreadable`` or ``no_face``; None if it isn't.
        score: the measure behind the reason; NaN if there is none.
        detail: what the score measures, or an explanation in words.
        width, height: size in px as stored, or of the cropped face; 0 if the file is not an image.
        brightness: mean gray level, 0 to 255; NaN, like the other measures, if the photo was not decoded.
        contrast: standard deviation of gray levels, 0 to 127.
        sharpness: see `raygan.data.examine.sharpness`.
        hash: SHA-256 of the decoded pixels in hex; empty if not decoded.
        phash: perceptual hash, 8 bytes; empty if not decoded.
        pixels: the square for the shards, uint8 (S, S, 3); None if not decoded.
        large: the same square for the feature network, uint8 (L, L, 3), if requested and the photo is not rejected.
        view: gray levels that are measured, uint8 (VIEW, VIEW); dropped once measured.
    """

    reason: str | None = None
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


class Filter:
    """Judges one photo at a time. Subclasses override one method or more.

    Each method returns None to accept the photo, or a score and what it measures to reject it.

    Attributes:
        rejects_low: whether low scores are rejected, not high ones. Contact sheets show borderline scores first.
        paired: whether a photo is rejected because of another one, which is kept.
    """

    rejects_low: ClassVar[bool] = False
    paired: ClassVar[bool] = False

    def of_file(self, size: int, limits: Limits) -> Objection | None:
        """Judge an image file by its size in bytes, before it is read. Not called for rows of Parquet files."""
        return None

    def of_header(self, header: Header, limits: Limits) -> Objection | None:
        """Judge an image by its header, before it is decoded."""
        return None

    def of_photo(self, photo: Photo, limits: Limits) -> Objection | None:
        """Judge a decoded photo by its pixels and measures."""
        return None


class Comparison(Filter):
    """Judges photos by comparing them with each other, in a later pass over all of them."""


class TooLarge(Filter):
    """Too many bytes to read, or pixels to decode."""

    def of_file(self, size: int, limits: Limits) -> Objection | None:
        return (size / 1e6, "megabytes") if size > limits.max_megabytes * 1e6 else None

    def of_header(self, header: Header, limits: Limits) -> Objection | None:
        return (header.megapixels, "megapixels") if header.megapixels > limits.max_megapixels else None


class TooSmall(Filter):
    """Too few pixels: of the photo, and then of the face cut out of it."""

    rejects_low = True

    def of_header(self, header: Header, limits: Limits) -> Objection | None:
        return self._of(min(header.width, header.height), limits)

    def of_photo(self, photo: Photo, limits: Limits) -> Objection | None:
        return self._of(min(photo.width, photo.height), limits)

    def _of(self, side: int, limits: Limits) -> Objection | None:
        return (side, "pixels on the short side") if side < (limits.min_side or 1) else None


class BadAspect(Filter):
    """A strip, of which a square would show little."""

    def of_header(self, header: Header, limits: Limits) -> Objection | None:
        return (header.aspect, "long side over short side") if header.aspect > limits.max_aspect else None


class Flat(Filter):
    """All of one gray level, or nearly so."""

    rejects_low = True

    def of_photo(self, photo: Photo, limits: Limits) -> Objection | None:
        return (photo.contrast, "standard deviation of gray levels") if photo.contrast < limits.min_contrast else None


class Blurry(Filter):
    """Out of focus."""

    rejects_low = True

    def of_photo(self, photo: Photo, limits: Limits) -> Objection | None:
        return (photo.sharpness, "sharpness") if photo.sharpness < limits.min_sharpness else None


class Duplicate(Comparison):
    """Exactly the pixels of another photo."""

    rejects_low = True
    paired = True


class NearDuplicate(Comparison):
    """Another photo rescaled or compressed again. The score counts differing bits of the perceptual hashes."""

    rejects_low = True
    paired = True


class Outlier(Comparison):
    """Unlike all other photos of its label."""


@dataclass(frozen=True)
class Rules:
    """The filters in use on single photos, and their limits.

    Attributes:
        filters: names in `FILTERS`, in the order in which they judge.
    """

    filters: tuple[str, ...]
    limits: Limits

    @classmethod
    def choose(cls, limits: Limits, skip: list[str]) -> Rules:
        """All filters of single photos but those to skip, with the limits that they need.

        Raises:
            ConfigurationError: a filter that a package offers can't be imported.
        """
        filters = [name for name in FILTERS.names() if name not in skip and not isinstance(load(name), Comparison)]
        return cls(tuple(filters), Limits(**{name: getattr(limits, name) for name in Limits.model_fields}))

    @property
    def offered(self) -> list[str]:
        """The names among `filters` that come from packages, not from raygan."""
        return [name for name in self.filters if not type(load(name)).__module__.startswith("raygan.")]

    def objection(self, judge: Callable[[Filter], Objection | None]) -> dict[str, Any]:
        """The fields of a `Photo` that say why the first filter to object does so; empty if none does."""
        for name in self.filters:
            found = judge(load(name))
            if found is not None:
                score, detail = found
                return {"reason": name, "score": score, "detail": detail}
        return {}


@functools.cache
def load(name: str) -> Filter:
    """The filter of that name. Raises ConfigurationError if it is unknown or can't be imported."""
    found: Filter = FILTERS.load(name)()
    return found
