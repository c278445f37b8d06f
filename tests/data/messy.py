"""A folder of photos with planted faults, and the verdict that each must get."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from raygan.data.examine import judge, look
from raygan.data.filters import Photo, Rules


def picture(seed: int, size: int = 160) -> Image.Image:
    """A picture with content at all scales, different for every seed."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            ),
            np.float64,
        )
        for cells in (3, 6, 12, 24, 48)
    ]
    mixed = sum(layer * weight for layer, weight in zip(layers, (0.4, 0.25, 0.15, 0.1, 0.1), strict=True))
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "JPEG", quality=92, **options)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def examine(data: bytes, size: int, rules: Rules, **options: Any) -> Photo:
    """Everything about one file, cropped: `look` with options, then `judge`."""
    return judge([look(data, size, "crop", rules, **options)], rules)[0]


def build(root: Path) -> dict[str, str]:
    """Write the folder. Returns each file's verdict: "kept", "ignored" or a reason."""
    plain = {
        f"{label}/plain_{i:02}.jpg": jpeg(picture(100 * j + i))
        for j, label in enumerate(("cat", "dog"))
        for i in range(6)
    }
    good = picture(500)
    exif = Image.Exif()
    exif[274] = 6
    grey16 = np.asarray(picture(501).convert("L"), np.uint16) * 257
    kept = {
        "cat/rotated.jpg": jpeg(picture(502), exif=exif.tobytes()),
        "cat/cmyk.jpg": jpeg(picture(503).convert("CMYK")),
        "cat/alpha.png": encoded(_with_alpha(picture(504)), "PNG"),
        "cat/größe and spaces (1).JPG": jpeg(picture(505)),
        "cat/photo.webp": encoded(picture(506), "WEBP"),
        "dog/gray.png": encoded(picture(507).convert("L"), "PNG"),
        "dog/gray16.png": encoded(Image.fromarray(grey16), "PNG"),
        "dog/palette.gif": encoded(picture(508).quantize(64), "GIF"),
        "dog/animated.gif": encoded(
            picture(509).quantize(64), "GIF", save_all=True, append_images=[picture(510).quantize(64)]
        ),
        "dog/png_inside.jpg": encoded(picture(511), "PNG"),
        "dog/jpeg_without_ending": jpeg(picture(512)),
        "dog/photo.tiff": encoded(picture(513), "TIFF"),
    }
    faults = {
        "unreadable": {
            "dog/truncated.jpg": jpeg(good)[:2000],
            "cat/empty.jpg": b"",
            "cat/error_page.jpg": b"<html>404 not found</html>",
            "cat/bitrot.png": _rotten_png(),
            "cat/phone.heic": b"\0\0\0\x18ftypheic" + bytes(200),
        },
        "too_small": {
            "cat/pixel.png": encoded(good.resize((1, 1)), "PNG"),
            "dog/thumb.jpg": jpeg(good.resize((12, 12))),
        },
        "too_large": {"cat/bomb.png": bomb(30_000)},
        "bad_aspect": {"dog/strip.jpg": jpeg(picture(514, 800).crop((0, 0, 800, 40)))},
        "flat": {"cat/black.jpg": jpeg(Image.new("RGB", (160, 160)))},
        "blurry": {"dog/blurred.jpg": jpeg(picture(515).filter(ImageFilter.GaussianBlur(14)))},
        "duplicate": {"cat/plain_00 copy.jpg": plain["cat/plain_00.jpg"]},
        "near_duplicate": {
            "dog/plain_00_small.jpg": encoded(picture(100).resize((150, 150)), "JPEG", quality=70),
        },
        "ignored": {"cat/notes.txt": b"call the vet", "dog/.DS_Store": b"\0\0\0\1Bud1", "labels.csv": b"a,b\n"},
    }
    files = {name: (content, "kept") for name, content in {**plain, **kept}.items()}
    for verdict, group in faults.items():
        files |= {name: (content, verdict) for name, content in group.items()}
    for name, (content, _) in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: verdict for name, (_, verdict) in files.items()}


def bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels, of which only the header should ever be read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def _rotten_png() -> bytes:
    content = bytearray(encoded(picture(516), "PNG"))
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    return bytes(content)
