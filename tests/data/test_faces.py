"""Cropping photos to faces, and the default detector."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raygan.data import faces
from raygan.data.filters import Rules
from raygan.data.settings import Limits, PrepareSettings
from raygan.errors import ConfigurationError
from tests.data.messy import encoded, examine, picture

ALL_PASS = Rules((), Limits())


@pytest.fixture(autouse=True)
def no_detector_is_loaded():
    faces.load_detector.cache_clear()
    yield
    faces.load_detector.cache_clear()


class Cascade:
    """Stands in for OpenCV's cascades: finds a small and a large face in every photo."""

    def __init__(self, path):
        self.path = path

    def empty(self):
        return not self.path.startswith("/of/opencv/haarcascade_")

    def detectMultiScale(self, gray, **options):  # noqa: N802 - OpenCV's name
        return np.array([[0, 0, 10, 10], [20, 20, 40, 40]])


def opencv(monkeypatch, **content):
    """Put a stand-in for OpenCV in place of cv2."""
    values = {
        "__version__": "4.0",
        "data": SimpleNamespace(haarcascades="/of/opencv/"),
        "CascadeClassifier": Cascade,
        "setNumThreads": lambda count: None,
        "equalizeHist": lambda gray: gray,
    }
    module = SimpleNamespace(**{name: value for name, value in {**values, **content}.items() if value is not None})
    monkeypatch.setitem(sys.modules, "cv2", module)


def test_cats_need_no_detector(monkeypatch, capsys):
    opencv(monkeypatch)
    faces.check_detector(faces.detector(None), {"cat"})
    assert faces.CAT_CASCADE in capsys.readouterr().out
    cut = faces.load_detector(faces.detector(None))
    photo = picture(1)
    assert cut(photo).tobytes() == photo.crop((14, 14, 66, 66)).tobytes()


def test_dogs_need_a_detector(monkeypatch):
    opencv(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"no cascade for the label dog: .*--detector"):
        faces.check_detector(faces.detector(None), {"cat", "dog"})


def test_opencv_5_is_refused_because_it_has_no_cascades(monkeypatch):
    opencv(monkeypatch, CascadeClassifier=None, data=None, __version__="5.0")
    with pytest.raises(ConfigurationError, match=r"OpenCV 4 \(OpenCV 5.0 has no cascades\): pip install 'raygan\[f"):
        faces.check_detector(faces.detector(None), {"cat"})


@pytest.mark.parametrize(("file", "package"), [(None, "cv2"), ("net.xml", "cv2"), ("net.onnx", "onnxruntime")])
def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch, file, package):
    monkeypatch.setitem(sys.modules, package, None)
    if file:
        (tmp_path / file).touch()
    with pytest.raises(ConfigurationError, match=rf"needs {package}: pip install 'raygan\[faces\]'"):
        faces.check_detector(faces.detector(file and str(tmp_path / file)), {"cat"})


def test_a_file_that_is_no_detector_is_refused(tmp_path, monkeypatch):
    opencv(monkeypatch)
    with pytest.raises(ConfigurationError, match="does not exist"):
        faces.check_detector(faces.detector(str(tmp_path / "none.xml")), {"cat"})
    (tmp_path / "net.bin").touch()
    with pytest.raises(ConfigurationError, match="neither"):
        faces.check_detector(faces.detector(str(tmp_path / "net.bin")), {"cat"})
    (tmp_path / "other.xml").touch()
    with pytest.raises(ConfigurationError, match="not a cascade"):
        faces.check_detector(faces.detector(str(tmp_path / "other.xml")), {"cat"})


def test_a_detector_in_the_home_is_found(tmp_path, monkeypatch):
    """A shell knows ~, but not in a configuration file."""
    opencv(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "dogs.xml").touch()
    settings = PrepareSettings(input=["x"], output="y", detector="~/dogs.xml")
    assert faces.detector(settings.detector).path == str(tmp_path / "dogs.xml")


def test_opencvs_own_cascade_loads_and_finds_no_face_in_noise():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip(f"OpenCV {cv2.__version__} has no cascades")
    faces.check_detector(faces.detector(None), {"cat"})
    assert faces.load_detector(faces.detector(None))(picture(1)) is None


@pytest.mark.parametrize("box", [(10, 10, 50, 50), (0, 0, 200, 90), (150, 60, 199, 99), (80, 2, 90, 40)])
def test_the_crop_is_a_square_inside_the_photo_around_the_middle_of_the_box(box):
    left, top, right, bottom = faces.square(box, 200, 100)
    assert right - left == bottom - top > 0
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100
    assert left <= (box[0] + box[2]) / 2 <= right


def test_the_most_confident_box_is_found_in_both_export_formats():
    raw = np.zeros((1, 6, 3))  # center, size, two classes; three boxes
    raw[0, :, 1] = [50, 40, 20, 10, 0.1, 0.9]
    raw[0, :, 2] = [10, 10, 5, 5, 0.5, 0.2]
    many = np.concatenate([raw, np.zeros((1, 6, 4))], axis=2)
    assert faces.best_box(many) == pytest.approx((40, 35, 60, 45))
    corners = np.array([[[1, 2, 3, 4, 0.2, 0], [5, 6, 7, 8, 0.8, 1]]])
    assert faces.best_box(corners) == (5, 6, 7, 8)
    assert faces.best_box(corners * 0.1) is None


def test_the_face_is_kept_and_photos_without_one_are_rejected():
    photo = picture(1)
    data = encoded(photo, "PNG")
    cut = examine(data, 32, ALL_PASS, cut_face=lambda image: image.crop((0, 0, 64, 64)))
    face = photo.crop((0, 0, 64, 64)).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cut.pixels, np.asarray(face))
    assert cut.hash == examine(data, 32, ALL_PASS).hash
    assert examine(data, 32, ALL_PASS, cut_face=lambda image: None).reason == "no_face"
