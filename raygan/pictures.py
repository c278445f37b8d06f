"""Pictures for people: grids of images, and reals beside fakes.

Images come as uint8 tensors (n, 3, S, S), as shards and `to_uint8` give them; pictures leave as Pillow
images or PNG bytes.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_GAP = 2
_CAPTION = 22
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Images (n, 3, S, S) uint8 in rows of `columns`, on white with a narrow gap."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    canvas = Image.new("RGB", size, _PAPER)
    for number, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(number, columns)
        canvas.paste(Image.fromarray(pixels), (column * (width + _GAP), row * (height + _GAP)))
    return canvas


def side_by_side(panels: list[tuple[str, torch.Tensor]], columns: int) -> Image.Image:
    """Grids beside each other, each under its caption; images below 64 px are magnified, so that one sees them."""
    grids = [(caption, grid(_magnified(images), columns)) for caption, images in panels]
    gap = 4 * _GAP
    size = (sum(g.width + gap for _, g in grids) - gap, max(g.height for _, g in grids) + _CAPTION)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    left = 0
    for caption, picture in grids:
        draw.text((left + 2, 2), caption, fill=_INK, font=ImageFont.load_default(14))
        canvas.paste(picture, (left, _CAPTION))
        left += picture.width + gap
    return canvas


def _magnified(images: torch.Tensor) -> torch.Tensor:
    times = max(1, 64 // images.shape[-1])
    return images.repeat_interleave(times, 2).repeat_interleave(times, 3)


def animation(frames: list[Image.Image], seconds: float = 8.0) -> bytes:
    """Frames of one size as the bytes of an endless animated WebP of so many seconds; empty without frames."""
    if not frames:
        return b""
    buffer = io.BytesIO()
    lasting = [round(seconds * 1000 / len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=lasting, loop=0, quality=80, method=2
    )
    return buffer.getvalue()


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def spread(count: int, of: int) -> np.ndarray:
    """`count` indices spread evenly over `of` items (fewer if there aren't as many)."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).astype(int))
