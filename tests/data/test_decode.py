"""From bytes to pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from raygan.data.decode import Unreadable, decode, looks_like_image, pixel_hash, read_header, to_square
from tests.data.messy import bomb, encoded, picture


def test_a_decompression_bomb_is_recognized_by_its_header():
    assert read_header(bomb(30_000)).megapixels == 900


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"<html>", "HTML"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"\xff\x0a" + bytes(99), "JPEG XL photo: convert"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x18ftypcrx " + bytes(99), "RAW"),
        (b"%!PS-Adobe-3.0 EPSF", "not an"),
    ],
)
def test_bytes_that_are_no_image_are_refused_with_the_reason(data, says):
    with pytest.raises(Unreadable, match=says):
        read_header(data)


def test_16_bit_and_floating_point_gray_keep_their_range():
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (8, 1))
    deep = decode(read_header(encoded(Image.fromarray(ramp), "PNG")))
    floating = decode(read_header(encoded(Image.fromarray(ramp.astype(np.float32) / 65535), "TIFF")))
    for image in (deep, floating):
        np.testing.assert_array_equal(np.asarray(image)[0, :, 1], np.arange(256))


def test_8_bit_gray_in_wider_types_is_read_as_what_it_is():
    gray = np.tile(np.arange(12, 232, dtype=np.uint8), (8, 1))
    wide = [
        encoded(Image.fromarray(gray.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray(gray.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(gray.astype(np.float32)), "TIFF"),
    ]
    for data in wide:
        np.testing.assert_array_equal(np.asarray(decode(read_header(data)))[..., 0], gray)


@pytest.mark.parametrize("whole", [1.0, 1023, 4095])
def test_gray_of_cameras_has_the_brightness_that_its_levels_mean(whole):
    gray = np.tile(np.arange(40, 232, dtype=np.uint8), (8, 1))  # neither black nor white
    levels = gray / 255 * whole
    data = (
        encoded(Image.fromarray(levels.astype(np.float32)), "TIFF")
        if whole == 1
        else encoded(Image.fromarray(np.round(levels).astype(np.uint16)), "PNG")
    )
    np.testing.assert_array_equal(np.asarray(decode(read_header(data)))[..., 0], gray)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("colors", [2, 3, 4])
def test_colors_in_16_bits_have_the_brightness_that_their_levels_mean(bits, colors):
    """Programs write 8 bits into 16, as OpenCV does of an array of wider integers: the upper bytes are black."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, colors), np.uint8)
    pixels[0, 0] = 255
    if colors != 3:
        pixels[..., -1] = 255  # opaque
    data = _png_of_16_bits(np.round(pixels / 255 * (2**bits - 1)).astype(np.uint16))
    expected = pixels[..., [0, 0, 0]] if colors == 2 else pixels[..., :3]
    np.testing.assert_array_equal(np.asarray(decode(read_header(data))), expected)


def _png_of_16_bits(values: np.ndarray) -> bytes:
    """Pillow writes none with colors."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, colors = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[colors], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_a_png_may_carry_megabytes_of_text():
    note = PngInfo()
    note.add_text("prompt", "a cat " * 10**6, zip=True)
    data = encoded(picture(3), "PNG", pnginfo=note)
    assert pixel_hash(decode(read_header(data))) == pixel_hash(picture(3))


def test_a_heic_photo_is_decoded_upright_like_a_phone_shows_it():
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    left_to_right = Image.linear_gradient("L").rotate(90).resize((96, 64)).convert("RGB")
    heif = pillow_heif.from_pillow(left_to_right)
    buffer = io.BytesIO()
    heif.save(buffer, quality=95, exif=exif.tobytes())
    assert looks_like_image(buffer.getvalue()[:16])
    photo = decode(read_header(buffer.getvalue()))
    as_jpeg = decode(read_header(encoded(left_to_right, "JPEG", quality=95, exif=exif.tobytes())))
    assert photo.size == as_jpeg.size == (64, 96)
    assert np.abs(np.asarray(photo, float) - np.asarray(as_jpeg, float)).mean() < 4


def test_transparent_pixels_are_on_white():
    clear = decode(read_header(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")))
    half = decode(read_header(encoded(Image.new("LA", (4, 4), (0, 128)), "PNG")))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_resizing_antialiases():
    """A checkerboard of single pixels has no structure left at a quarter of its size: it must turn gray."""
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    small = np.asarray(to_square(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 64, "crop"), float)
    assert np.abs(small - 127.5).max() < 6


def test_the_hash_depends_on_pixels_not_on_the_file():
    photo = picture(1)
    assert pixel_hash(decode(read_header(encoded(photo, "PNG")))) == pixel_hash(
        decode(read_header(encoded(photo, "BMP")))
    )
    assert pixel_hash(photo) != pixel_hash(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert pixel_hash(Image.new("RGB", (4, 2))) != pixel_hash(Image.new("RGB", (2, 4)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_formats_are_recognized_by_their_first_bytes(kind):
    assert looks_like_image(encoded(picture(2), kind)[:16])
    assert not looks_like_image(b"just some text..")
