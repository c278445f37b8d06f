"""Uploads that are hostile, damaged or too large."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib

import httpx
import psutil
import pytest
from PIL import Image

from raygan.data.decode import jpeg_scans, read_header
from raygan.serve.problems import Problem
from raygan.serve.workers import Decoders, Slots
from tests.serve.local import NoMetrics


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(b"\0" * 100)


def whole_png():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def many_scans(count, size=64):
    """A progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (size, size), 128).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    return whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * count + whole[-2:]


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
    "scans": many_scans(200),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_named_and_rejected(http, name):
    answer = http.post("/v1/classify", files=[("images", ("x.png", whole_png())), ("images", ("y.png", HOSTILE[name]))])
    assert answer.status_code == (413 if name == "bomb" else 422)
    assert answer.json()["field"] == "images[1]"
    assert "0x" not in answer.text


def phone_photo(movie):
    """A JPEG with what could be a preview inside and a movie behind it, as phones write them."""
    buffer = io.BytesIO()
    photo = Image.effect_noise((64, 64), 50).convert("RGB")
    photo.save(buffer, "JPEG", comment=b"\xff\xda" * 3000, progressive=True)
    return buffer.getvalue() + movie


def test_only_scans_of_the_picture_itself_count():
    """Not what looks like one in a preview, or in the movie behind the picture."""
    plain = many_scans(0)
    assert 1 <= jpeg_scans(plain) <= 10
    assert jpeg_scans(many_scans(30)) == jpeg_scans(plain) + 30
    fill = plain.replace(b"\xff\xda", b"\xff\xff\xff\xda")
    assert jpeg_scans(fill) == jpeg_scans(plain)
    assert jpeg_scans(phone_photo(b"\xff\xda" * 1000)) <= 12
    assert read_header(phone_photo(b"\xff\xda" * 1000)).image.format == "JPEG"


async def test_an_upload_that_takes_too_long_holds_up_nobody_and_ends_with_its_process():
    decoders = Decoders(2, NoMetrics(), max_megapixels=1000, seconds=60)
    large = io.BytesIO()
    Image.new("L", (15000, 15000)).save(large, "PNG", compress_level=1)
    await decoders.decode("b", whole_png(), 32, "images[0]")  # a process has started
    decoders.seconds = 0.02
    with pytest.raises(Problem, match=r"takes more than 0\.02 s") as caught:
        await decoders.decode("a", large.getvalue(), 32, "images[0]")
    assert caught.value.status == 413
    decoders.seconds = 60
    await decoders.decode("a", whole_png(), 32, "images[0]")
    for child in psutil.Process().children():  # an idle process dies, for want of memory perhaps
        if "raygan.serve.decoder" in child.cmdline():
            child.kill()
            child.wait()
    await asyncio.sleep(0.1)
    assert (await decoders.decode("a", whole_png(), 32, "images[0]")).shape == (32, 32, 3)
    await decoders.close()


def decoding_processes():
    return {child.pid for child in psutil.Process().children() if "raygan.serve.decoder" in " ".join(child.cmdline())}


async def test_a_decoder_knows_no_secrets(monkeypatch):
    monkeypatch.setenv("RAYGAN_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    decoders, others = Decoders(1, NoMetrics(), max_megapixels=1), decoding_processes()
    await decoders.decode("a", whole_png(), 32, "images[0]")
    (process,) = decoding_processes() - others
    assert "s3cret" not in psutil.Process(process).environ().values()
    await decoders.close()


async def test_a_decoder_whose_client_leaves_while_it_starts_ends():
    decoders, others = Decoders(1, NoMetrics(), max_megapixels=1), decoding_processes()
    decoding = asyncio.ensure_future(decoders.decode("a", whole_png(), 32, "images[0]"))
    while not decoding_processes() - others:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # it imports
    decoding.cancel()
    await asyncio.wait([decoding])
    await decoders.close()  # what is idle
    assert decoding_processes() <= others


async def test_waiting_work_is_taken_in_turn_by_client_and_limited():
    slots, order = Slots("decode", 1, NoMetrics(), limit=6, share=4), []

    async def work(client):
        async with slots.taken(client):
            order.append(client)
            await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(work(client)) for client in "aaaaaabbc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end).__name__ for end in ends] == [
        "NoneType",
        "CancelledError",
        *["NoneType"] * 3,
        "Busy",
        *["NoneType"] * 2,
        "Busy",
    ]
    assert order == ["a", "b", "a", "b", "a", "a"]
    async with slots.taken("d"):  # nothing stays taken
        pass


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
