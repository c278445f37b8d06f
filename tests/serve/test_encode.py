"""Encoding: the PNG files are what Pillow reads."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from raygan.serve import encode


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (7, 200)])
def test_pillow_reads_the_png_files(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    content = encode.png(picture)
    with Image.open(io.BytesIO(content)) as read:
        read.verify()
    with Image.open(io.BytesIO(content)) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(read), picture)
    assert encode.png(picture) == content
