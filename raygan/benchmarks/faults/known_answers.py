"""Whether the service's answers are right: equal to those that the same requests get when nobody else asks."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from raygan.benchmarks.clients import Client, Request
from raygan.errors import RayganError


def upload(content: bytes, name: str = "x.png") -> Request:
    """A file to classify, as a form sends it."""
    head = f'--b\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return Request("/v1/classify", head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


def of_every_kind() -> list[Request]:
    """Small and large requests of every kind and format, whose answers depend on nothing else."""
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(photo, "PNG")
    paths = [
        *(f"/v1/sample?label=cat&n={n}&seed={seed}&format=npz" for n in (1, 4, 16) for seed in range(0, 400, 100)),
        *(f"/v1/sample?label=cat&n=9&seed={seed}&truncation=0.5" for seed in range(3)),
        "/v1/sample?label=cat&n=64&seed=5",
        "/v1/sample?label=cat&n=4&seed=5&min_confidence=0.01&format=grid",
        *(f"/v1/sample?label=cat&n=2&seed=5&format={kind}" for kind in ("webp", "jpeg", "json", "zip")),
        "/v1/interpolate?label=cat&seed=1&to=2&frames=8&format=gif",
        "/v1/models",
    ]
    posted = json.dumps({"label": "cat", "n": 3, "seed": 8, "format": "npz"}).encode()
    return [*map(Request, paths), Request("/v1/sample", posted), upload(photo.getvalue())]


async def ask_alone(port: int, asked: Iterable[Request]) -> dict[Request, bytes]:
    """The body of each request's answer when nobody else asks."""
    known = {}
    async with Client(port) as client:
        for request in asked:
            answer = await client.ask(request)
            if answer.status != 200:
                raise RayganError(f"{request.path} got {answer.status} before the drill: {answer.body[:200]!r}")
            known[request] = answer.body
    return known


def same(request: Request, body: bytes, known: bytes) -> bool:
    """Whether the images are equal; probabilities may differ by rounding. An unreadable body is not the same."""
    try:
        return _same(request, body, known)
    except Exception:  # NumPy raises anything for a body that isn't an archive
        return False


def _same(request: Request, body: bytes, known: bytes) -> bool:
    if request.path.endswith(("classify", "format=json")):
        return _nearly_equal(json.loads(body), json.loads(known))
    if "format=zip" in request.path:
        return _pngs(body) == _pngs(known)
    if "format=npz" not in request.path and b"npz" not in (request.body or b""):
        return body == known
    first, second = np.load(io.BytesIO(body)), np.load(io.BytesIO(known))
    equal = np.array_equal(first["images"], second["images"])
    return bool(equal and abs(first["probabilities"] - second["probabilities"]).max() < 0.01)


def _pngs(body: bytes) -> dict[str, bytes]:
    """The PNG files in a ZIP file."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}


def _nearly_equal(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal but for rounding."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_nearly_equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_nearly_equal, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) < 0.01
    return bool(first == second)
