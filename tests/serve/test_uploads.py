"""Uploads that are hostile, damaged or too large."""

from __future__ import annotations

import io
import struct
import zlib

import httpx
import pytest
from PIL import Image


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(b"\0" * 100)


def whole_png():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "html": b"<!doctype html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "xml bomb": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaa">]><l>&a;</l>',
    "truncated": whole_png()[:200],
    "noise after the signature": b"\xff\xd8\xff" + bytes(range(256)) * 8,
    "gif header only": b"GIF89a" + b"\xff" * 8,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "tiff": b"II*\0" + b"\0" * 64,
    "text": b"http://127.0.0.1/secret",
    "bomb": png_header(50000, 50000) + b"\0" * 32,
    "no pixels": png_header(0, 0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_named_and_rejected(http, name):
    answer = http.post("/v1/classify", files=[("images", ("x.png", whole_png())), ("images", ("y.png", HOSTILE[name]))])
    assert answer.status_code == (413 if name == "bomb" else 422)
    assert answer.json()["field"] == "images[1]"
    assert "0x" not in answer.text


def test_too_many_too_large_and_endless_uploads_are_rejected(http):
    assert "the limit is 32" in http.post("/v1/classify", files=[("images", ("a", b"x"))] * 33).json()["detail"]
    big = http.post("/v1/classify", files=[("images", ("a", b"\x89PNG" + b"0" * 11_000_000))])
    assert (big.status_code, big.json()["field"]) == (413, "images[0]")

    def endless():
        for _ in range(50):
            yield b"0" * 1_000_000

    try:
        answer = http.post(
            "/v1/classify", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=a"}
        )
        assert answer.status_code in (400, 413)
    except httpx.HTTPError:
        pass  # the connection was closed while we were still sending
    assert http.get("/healthz").status_code == 200
