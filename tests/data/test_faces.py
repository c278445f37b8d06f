"""Cutting faces out of photos."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from raygan.data import faces
from raygan.data.filters import Limits, examine
from raygan.errors import ConfigurationError
from tests.data.messy import encoded, picture

ALL_PASS = Limits(None, None, None, None, None)


def test_without_a_detector_it_says_where_to_get_one(tmp_path):
    with pytest.raises(ConfigurationError, match="haarcascade"):
        faces.check_detector(None)
    with pytest.raises(ConfigurationError, match="does not exist"):
        faces.check_detector(str(tmp_path / "none.xml"))
    (tmp_path / "net.bin").touch()
    with pytest.raises(ConfigurationError, match="neither"):
        faces.check_detector(str(tmp_path / "net.bin"))


def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(ConfigurationError, match=r"raygan\[faces\]"):
        faces.check_detector(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("box", [(10, 10, 50, 50), (0, 0, 200, 90), (150, 60, 199, 99), (80, 2, 90, 40)])
def test_the_cut_is_a_square_within_the_photo_that_holds_the_middle_of_the_box(box):
    left, top, right, bottom = faces.square(box, 200, 100)
    assert right - left == bottom - top > 0
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100
    assert left <= (box[0] + box[2]) / 2 <= right


def test_the_most_certain_box_of_either_export():
    raw = np.zeros((1, 6, 3))  # centre, size, two classes; three boxes
    raw[0, :, 1] = [50, 40, 20, 10, 0.1, 0.9]
    raw[0, :, 2] = [10, 10, 5, 5, 0.5, 0.2]
    many = np.concatenate([raw, np.zeros((1, 6, 4))], axis=2)
    assert faces.best_box(many) == pytest.approx((40, 35, 60, 45))
    corners = np.array([[[1, 2, 3, 4, 0.2, 0], [5, 6, 7, 8, 0.8, 1]]])
    assert faces.best_box(corners) == (5, 6, 7, 8)
    assert faces.best_box(corners * 0.1) is None


def test_the_face_is_what_is_kept_and_photos_without_one_are_rejected():
    photo = picture(1)
    data = encoded(photo, "PNG")
    cut = examine(data, 32, "crop", ALL_PASS, cut_face=lambda image: image.crop((0, 0, 64, 64)))
    face = photo.crop((0, 0, 64, 64)).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cut.pixels, np.asarray(face))
    assert cut.hash == examine(data, 32, "crop", ALL_PASS).hash
    assert examine(data, 32, "crop", ALL_PASS, cut_face=lambda image: None).reason == "no_face"
