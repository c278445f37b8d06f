"""From arrays to the bytes of an answer: pictures, archives, animations.

Images are uint8 (n, S, S, 3). Encoding is deterministic: the same pixels give the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from isal import isal_zlib
from PIL import Image

from raygan.serve.messages import Pixels, Samples

Format = Literal["grid", "zip", "json", "npz", "webp", "jpeg"]
Animation = Literal["webp", "gif"]

#: Formats whose answers hold the classifier's verdicts.
WITH_VERDICTS = ("json", "zip", "npz")

MEDIA_TYPES = {
    "grid": "image/png",
    "zip": "application/zip",
    "json": "application/json",
    "npz": "application/x-npz",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "ndjson": "application/x-ndjson",
}

#: Pixels between the images of a grid.
_GAP = 2

#: The first bytes of a compressed body.
GZIP = b"\x1f\x8b"

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def png(picture: Pixels) -> bytes:
    """An image (H, W, 3) as a PNG file.

    Each byte is stored as the difference from the pixel to its left, and the differences are compressed at ISA-L's
    fast level: a tenth of the time of Pillow's lowest level, for files of the same size.
    """
    height, width, _ = picture.shape
    rows = picture.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 1  # the filter type "Sub", for every row
    filtered[:, 1:4] = rows[:, :3]
    np.subtract(rows[:, 3:], rows[:, :-3], out=filtered[:, 4:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = isal_zlib.compress(filtered.data, 1)
    return _PNG_HEAD + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def grid(images: Pixels) -> Pixels:
    """One picture of all images, as square as possible, on white with a narrow gap."""
    count, size = images.shape[:2]
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    step = size + _GAP
    canvas = np.full((rows * step, columns * step, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = (place * step for place in divmod(number, columns))
        canvas[top : top + size, left : left + size] = image
    return np.ascontiguousarray(canvas[:-_GAP, :-_GAP])


def samples_body(samples: Samples, kind: Format) -> bytes:
    """The body of an answer with samples."""
    if kind == "grid":
        return png(grid(samples.images))
    if kind == "json":
        return json.dumps(_document(samples)).encode()
    if kind == "zip":
        return _archive(samples)
    if kind == "npz":
        return _arrays(samples)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 90, "method": 2} if kind == "webp" else {"quality": 92}
    Image.fromarray(grid(samples.images)).save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def animation(frames: Pixels, kind: Animation, *, milliseconds: int) -> bytes:
    """An endlessly repeating animation that shows each frame for some milliseconds."""
    pictures = [Image.fromarray(frame) for frame in frames] if kind == "webp" else _in_one_palette(frames)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 85, "method": 1} if kind == "webp" else {"disposal": 1, "optimize": False}
    pictures[0].save(
        buffer, kind.upper(), save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **options
    )
    return buffer.getvalue()


def _in_one_palette(frames: Pixels) -> list[Image.Image]:
    """Frames in 256 colors, chosen once for all of them: a palette for each costs five times as much."""
    count, height, width = frames.shape[:3]
    strip = Image.fromarray(frames.reshape(count * height, width, 3))
    quantized = strip.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return [quantized.crop((0, i * height, width, (i + 1) * height)) for i in range(count)]


def _about(samples: Samples) -> dict[str, Any]:
    """What JSON says about the whole answer."""
    return {
        "label": samples.label,
        "model": {"name": samples.model.name, "version": samples.model.version},
        "classifier": (
            {"name": samples.classifier.name, "version": samples.classifier.version} if samples.classifier else None
        ),
        "drawn": samples.drawn,
        "accepted": samples.accepted,
    }


def _probabilities(samples: Samples) -> Sequence[dict[str, float] | None]:
    """Each image's probability of each label; None per image if there are no predictions."""
    return samples.predictions.plain() if samples.predictions else [None] * samples.accepted


def _document(samples: Samples) -> dict[str, Any]:
    probabilities = _probabilities(samples)
    images = [
        {"seed": seed, "probabilities": each, "png": base64.b64encode(png(image)).decode()}
        for seed, each, image in zip(samples.seeds, probabilities, samples.images, strict=True)
    ]
    return {**_about(samples), "images": images}


def lines(samples: Samples) -> bytes:
    """A line of JSON per image, as in the images of a JSON answer."""
    return b"".join(json.dumps(image).encode() + b"\n" for image in _document(samples)["images"])


def _archive(samples: Samples) -> bytes:
    """A zip file of PNGs named by their seeds, and samples.json with the rest."""
    probabilities = _probabilities(samples)
    listing = [
        {"seed": seed, "file": f"{seed}.png", "probabilities": each}
        for seed, each in zip(samples.seeds, probabilities, strict=True)
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # PNGs are already compressed
        for entry, image in zip(listing, samples.images, strict=True):
            archive.writestr(_member(str(entry["file"])), png(image))
        text = json.dumps({**_about(samples), "images": listing}, indent=1)
        archive.writestr(_member("samples.json"), text)
    return buffer.getvalue()


def _arrays(samples: Samples) -> bytes:
    """npz: images uint8 (n, S, S, 3), seeds int64 (n,), and with predictions probabilities (n, labels) and labels."""
    arrays: dict[str, Any] = {"images": samples.images, "seeds": np.array(samples.seeds, np.int64)}
    if samples.predictions is not None:
        arrays |= {"probabilities": samples.predictions.probabilities, "labels": np.array(samples.predictions.labels)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # no clock, so the same samples give the same bytes


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
