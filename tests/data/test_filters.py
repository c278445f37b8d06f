"""Measures of photos: what they are, and the same answers alone and in company."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from raygan.data.filters import Limits, examine, judge, look
from tests.data import messy

LIMITS = Limits(min_side=16, max_megapixels=50, max_aspect=4, min_contrast=5, min_sharpness=0.1)


def _bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_company_changes_no_measure_and_no_verdict():
    blurred = messy.picture(515).filter(ImageFilter.GaussianBlur(14))
    pictures = [*(messy.picture(seed, 96) for seed in range(70)), Image.new("RGB", (96, 96), "red"), blurred]
    files = [*map(_bytes, pictures), b"no photo", _bytes(messy.picture(3, 8))]
    together = judge([look(data, 32, "crop", LIMITS) for data in files], LIMITS)
    for data, photo in zip(files, together, strict=True):
        alone = examine(data, 32, "crop", LIMITS)
        assert repr(alone) == repr(photo)
    reasons = [photo.reason for photo in together]
    assert reasons[-4:] == ["flat", "blurry", "unreadable", "too_small"]
    assert not any(reasons[:70])


def test_sharpness_and_contrast_are_deviations():
    grey = np.asarray(messy.picture(5, 64).convert("L"), np.float64)
    photo = examine(_bytes(messy.picture(5, 64)), 64, "crop", LIMITS)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    np.testing.assert_allclose(photo.brightness, grey.mean(), rtol=1e-5)
    np.testing.assert_allclose(photo.contrast, grey.std(), rtol=1e-5)
    np.testing.assert_allclose(photo.sharpness, (laplacian.var() - 20 / 12) ** 0.5 / grey.std(), rtol=1e-4)
