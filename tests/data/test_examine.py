"""Measures of photos, and verdicts that don't depend on the photos judged along with them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from raygan.data.decode import decode, read_header
from raygan.data.examine import judge, look
from raygan.data.filters import Rules
from raygan.data.settings import Limits
from tests.data import messy

LIMITS = Limits(min_side=16, max_megapixels=50, max_aspect=4, min_contrast=5, min_sharpness=0.1)
RULES = Rules.choose(LIMITS, skip=[])


def png(picture: Image.Image) -> bytes:
    return messy.encoded(picture, "PNG")


def test_a_photo_is_measured_and_judged_the_same_alone_and_among_others():
    blurred = messy.picture(515).filter(ImageFilter.GaussianBlur(14))
    pictures = [*(messy.picture(seed, 96) for seed in range(70)), Image.new("RGB", (96, 96), "red"), blurred]
    files = [*map(png, pictures), b"no photo", png(messy.picture(3, 8))]
    together = judge([look(data, 32, "crop", RULES) for data in files], RULES)
    for data, photo in zip(files, together, strict=True):
        assert repr(messy.examine(data, 32, RULES)) == repr(photo)
    reasons = [photo.reason for photo in together]
    assert reasons[-4:] == ["flat", "blurry", "unreadable", "too_small"]
    assert not any(reasons[:70])


def test_measures_equal_those_of_plain_numpy():
    gray = np.asarray(messy.picture(5, 64).convert("L"), np.float64)
    photo = messy.examine(png(messy.picture(5, 64)), 64, RULES)
    laplacian = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1] - 4 * gray[1:-1, 1:-1]
    np.testing.assert_allclose(photo.brightness, gray.mean(), rtol=1e-5)
    np.testing.assert_allclose(photo.contrast, gray.std(), rtol=1e-5)
    np.testing.assert_allclose(photo.sharpness, (laplacian.var() - 20 / 12) ** 0.5 / gray.std(), rtol=1e-4)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [64, 128])
def test_a_large_jpeg_decoded_at_a_smaller_scale_gives_nearly_the_same(size, orientation):
    random = np.random.default_rng(5)
    coarse = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    photo = coarse.resize((3200, 2400), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90, exif=exif)
    found = messy.examine(buffer.getvalue(), size, RULES, large=128)
    upright = photo if orientation == 1 else photo.rotate(-90, expand=True)
    assert (found.width, found.height) == upright.size
    whole = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(found.pixels - whole).mean() < 1.5
    decoded = decode(read_header(buffer.getvalue()), 2 * 128)
    assert sorted(decoded.size) == [300, 400]


def test_small_jpegs_and_other_formats_are_decoded_whole():
    for kind, size in (("JPEG", (700, 500)), ("PNG", (1600, 1200))):
        buffer = io.BytesIO()
        Image.new("RGB", size, (9, 99, 199)).save(buffer, kind)
        assert decode(read_header(buffer.getvalue()), 256).size == size


@pytest.mark.parametrize("side", [511, 512, 600, 1100])
def test_a_photo_has_one_hash_at_every_size_and_with_its_face_cut_out(side):
    """Else it would be held out at 128 px, and trained on at 256 px by a run that begins from the other."""
    data = messy.encoded(messy.picture(9, side), "JPEG")
    photos = [look(data, size, "crop", RULES, large=large) for size in (32, 128, 256) for large in (None, 128)]
    photos.append(look(data, 64, "crop", RULES, cut_face=lambda photo: photo.crop((40, 40, 140, 140))))
    assert len({photo.hash for photo in photos}) == 1
    assert (photos[-1].width, photos[0].width) == (100, side)
