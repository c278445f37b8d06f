"""Crops photos to faces, with a detector chosen by the user.

Two kinds of detector files are supported; the packages that run them come with ``pip install 'raygan[faces]'``:

    .xml   an OpenCV 4 cascade; the default is the one for cats that comes with OpenCV
    .onnx  a YOLO detector as exported by Ultralytics: input (1, 3, H, W) RGB from 0 to 1; output (1, 4 + classes,
           boxes) of center, size and scores, or, with built-in suppression, (1, boxes, 6) of corners, score and class

The most confident detection (with cascades, the largest) is cropped as a square with a margin.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raygan.errors import ConfigurationError, first_line, reason

#: The default detector: a cascade in OpenCV's own data folder. Known by its name, since that folder differs by node.
CAT_CASCADE = "haarcascade_frontalcatface_extended.xml"

#: Labels, normalized, that the default detector is no use for.
_DOGS = frozenset({"dog", "puppy", "hound"})

#: Side of the crop over the longer side of the box: ears and chin are part of a face.
MARGIN = 1.3

#: Lowest accepted score of an ONNX detector's box.
CERTAIN = 0.4

_FOR_DOGS = "for dogs, give --detector, such as a YOLO detector of dog faces exported to ONNX"


class Detector(NamedTuple):
    """A detector's file.

    Attributes:
        path: absolute, or `CAT_CASCADE`.
        digest: SHA-256 of its content in hex, which tells it from an earlier file of that path; empty for the default.
    """

    path: str
    digest: str = ""


Cutter = Callable[[Image.Image], Image.Image | None]
_Box = tuple[float, float, float, float]  # left, top, right, bottom, px


def check_detector(chosen: Detector, labels: Collection[str]) -> None:
    """Fail early, with advice, if faces can't be found.

    Args:
        chosen: the detector.
        labels: of the photos.

    Raises:
        ConfigurationError: the file can't be loaded here, or there is no default for these labels.
    """
    usual = chosen.path == CAT_CASCADE
    if usual and (dogs := sorted(_DOGS & set(labels))):
        raise ConfigurationError(f"--crop-faces: OpenCV has no cascade for the label {dogs[0]}: {_FOR_DOGS}")
    load_detector(chosen)
    if usual:
        print(f"faces are found with OpenCV's cascade for cats, {CAT_CASCADE}")


def detector(path: str | None) -> Detector:
    """The detector as `load_detector` takes it on any node.

    Raises:
        ConfigurationError: the file doesn't exist or can't be read.
    """
    if path is None:
        return Detector(CAT_CASCADE)
    if not os.path.isfile(path):
        raise ConfigurationError(
            f"--detector: {path} does not exist. Without --detector, OpenCV's cascade for cats is used; {_FOR_DOGS}"
        )
    try:
        with open(path, "rb") as file:
            return Detector(path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ConfigurationError(f"--detector: {path} cannot be read: {reason(error)}") from None


@functools.lru_cache(maxsize=1)
def load_detector(detector: Detector) -> Cutter:
    """A function that crops a photo to its face, or returns None if it finds none.

    Raises:
        ConfigurationError: the detector can't be loaded; the message says why, or what to install.
    """
    path = detector.path
    flag = "--crop-faces" if path == CAT_CASCADE else f"--detector: {path}"
    kinds = {".xml": _cascade, ".onnx": _onnx}
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise ConfigurationError(f"{flag} is neither a cascade (.xml) nor an ONNX model (.onnx)")
    try:
        find = kinds[kind](path)
    except ImportError as error:
        raise ConfigurationError(f"{flag} needs {error.name}: pip install 'raygan[faces]'") from None
    except Exception as error:  # OpenCV and ONNX Runtime have exceptions of their own
        raise ConfigurationError(f"{flag} cannot be loaded: {first_line(error)}") from None

    def cut(photo: Image.Image) -> Image.Image | None:
        box = find(photo)
        return None if box is None else photo.crop(square(box, photo.width, photo.height))

    return cut


def square(box: _Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a box, `MARGIN` times as large, shifted and shrunk to fit into the photo."""
    left, top, right, bottom = box
    side = round(min(MARGIN * max(right - left, bottom - top), width, height))
    x = round(min(max((left + right - side) / 2, 0), width - side))
    y = round(min(max((top + bottom - side) / 2, 0), height - side))
    return x, y, x + side, y + side


def _cascade(path: str) -> Callable[[Image.Image], _Box | None]:
    import cv2

    if not hasattr(cv2, "CascadeClassifier"):
        raise ImportError(name=f"OpenCV 4 (OpenCV {cv2.__version__} has no cascades)")
    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, path) if path == CAT_CASCADE else path)
    if cascade.empty():
        raise ValueError("not a cascade")

    def find(photo: Image.Image) -> _Box | None:
        gray = cv2.equalizeHist(np.asarray(photo.convert("L")))
        found = cascade.detectMultiScale(gray, scaleFactor=1.1, minNeighbors=4, minSize=(24, 24))
        if not len(found):
            return None
        x, y, width, height = max(np.asarray(found).tolist(), key=lambda box: (box[2] * box[3], box))
        return x, y, x + width, y + height

    return find


def _onnx(path: str) -> Callable[[Image.Image], _Box | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inlet = session.get_inputs()[0]
    height, width = (side if isinstance(side, int) else 640 for side in inlet.shape[2:])

    def find(photo: Image.Image) -> _Box | None:
        scale = min(width / photo.width, height / photo.height)
        resized = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
        canvas = Image.new("RGB", (width, height), (114, 114, 114))
        canvas.paste(resized)
        pixels = np.asarray(canvas, np.float32).transpose(2, 0, 1)[None] / 255
        best = best_box(session.run(None, {inlet.name: pixels})[0])
        return None if best is None else tuple(value / scale for value in best)  # type: ignore[return-value]

    return find


def best_box(output: Any) -> _Box | None:
    """The most confident box of a YOLO output, or None if no score reaches `CERTAIN`."""
    boxes = np.asarray(output, np.float32)[0]
    if boxes.shape[1] == 6:
        corners, scores = boxes[:, :4], boxes[:, 4]
    else:
        center, size, scores = boxes[:2].T, boxes[2:4].T, boxes[4:].max(axis=0)
        corners = np.concatenate([center - size / 2, center + size / 2], axis=1)
    if not len(scores) or scores.max() < CERTAIN:
        return None
    left, top, right, bottom = corners[int(scores.argmax())].tolist()
    return left, top, right, bottom
