"""Faces cut out of whole photos by a detector that the user points to.

Two kinds of files are understood. The packages that run them are the extra ``pip install 'raygan[faces]'``:

    .xml   a cascade of OpenCV 4, such as haarcascade_frontalcatface_extended.xml
    .onnx  a YOLO detector as Ultralytics exports it: input (1, 3, H, W) RGB from 0 to 1; output (1, 4 + classes,
           boxes) of centre, size and scores, or with its own suppression (1, boxes, 6) of corners, score, class

The most certain (cascades: the largest) face of a photo is cut out as a square with some margin.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from raygan.errors import ConfigurationError, first_line

#: Side of the cut over the longer side of the box: ears and chin belong to a face.
MARGIN = 1.3

#: Least score of an ONNX detector's box.
CERTAIN = 0.4

_WHERE = (
    "OpenCV 4 has cascades of cat faces, https://github.com/opencv/opencv/tree/4.x/data/haarcascades "
    "(haarcascade_frontalcatface_extended.xml); for dogs, export a YOLO detector that knows their faces to ONNX"
)

Cutter = Callable[[Image.Image], Image.Image | None]
_Box = tuple[float, float, float, float]  # left, top, right, bottom, px


def check_detector(path: str | None) -> None:
    """Raise ConfigurationError, with the way out, unless the file is there and can be run here."""
    if path is None:
        raise ConfigurationError(f"--crop-faces needs a face detector: give its file with --detector. {_WHERE}")
    if not os.path.isfile(path):
        raise ConfigurationError(f"--detector: {path} does not exist. {_WHERE}")
    load_detector(os.path.abspath(path))


@functools.lru_cache(maxsize=1)
def load_detector(path: str) -> Cutter:
    """A function from a photo to its face, or None if it has none. Raises ConfigurationError."""
    kinds = {".xml": _cascade, ".onnx": _onnx}
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise ConfigurationError(f"--detector: {path} is neither a cascade (.xml) nor an ONNX model (.onnx)")
    try:
        find = kinds[kind](path)
    except ImportError as error:
        raise ConfigurationError(f"--detector: {error.name} is missing: pip install 'raygan[faces]'") from None
    except Exception as error:  # both libraries have exceptions of their own
        raise ConfigurationError(f"--detector: {path} cannot be loaded: {first_line(error)}") from None

    def cut(photo: Image.Image) -> Image.Image | None:
        box = find(photo)
        return None if box is None else photo.crop(square(box, photo.width, photo.height))

    return cut


def square(box: _Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The square about a box, `MARGIN` times as large, moved and shrunk to lie within the photo."""
    left, top, right, bottom = box
    side = round(min(MARGIN * max(right - left, bottom - top), width, height))
    x = round(min(max((left + right - side) / 2, 0), width - side))
    y = round(min(max((top + bottom - side) / 2, 0), height - side))
    return x, y, x + side, y + side


def _cascade(path: str) -> Callable[[Image.Image], _Box | None]:
    import cv2

    if not hasattr(cv2, "CascadeClassifier"):
        raise ImportError("OpenCV 5 runs no cascades", name="opencv-python-headless<5")
    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(path)
    if cascade.empty():
        raise ValueError("it is no cascade")

    def find(photo: Image.Image) -> _Box | None:
        grey = cv2.equalizeHist(np.asarray(photo.convert("L")))
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(24, 24))
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
    """The most certain box of a YOLO output, or None if none is certain enough."""
    boxes = np.asarray(output, np.float32)[0]
    if boxes.shape[1] == 6:
        corners, scores = boxes[:, :4], boxes[:, 4]
    else:
        centre, size, scores = boxes[:2].T, boxes[2:4].T, boxes[4:].max(axis=0)
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    if not len(scores) or scores.max() < CERTAIN:
        return None
    left, top, right, bottom = corners[int(scores.argmax())].tolist()
    return left, top, right, bottom
