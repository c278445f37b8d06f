"""Pictures for people: images in grids, side by side, with captions, animated.

Images are uint8 tensors (n, 3, S, S); pictures are Pillow images, and bytes of files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # takes seconds to import, which processes that only read photos don't need
    from torch import Tensor

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP = 2
_CAPTION = 22
_PAPER, _INK, _MISSING = (255, 255, 255), (40, 40, 40), (214, 214, 214)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images in rows of `columns`, on white with narrow gaps."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    canvas = Image.new("RGB", size, _PAPER)
    for number, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(number, columns)
        canvas.paste(Image.fromarray(pixels), (column * (width + _GAP), row * (height + _GAP)))
    return canvas


def side_by_side(panels: Sequence[tuple[str, Tensor]], columns: int) -> Image.Image:
    """Grids side by side, each under its caption. Images below 64 px are magnified."""
    grids = [(caption, grid(_magnified(images), columns)) for caption, images in panels]
    gap = 4 * _GAP
    size = (sum(g.width + gap for _, g in grids) - gap, max(g.height for _, g in grids) + _CAPTION)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    left = 0
    for caption, picture in grids:
        draw.text((left + 2, 2), caption, fill=_INK, font=_font(caption, 14))
        canvas.paste(picture, (left, _CAPTION))
        left += picture.width + gap
    return canvas


def _magnified(images: Tensor) -> Tensor:
    times = max(1, 64 // images.shape[-1])
    return images.repeat_interleave(times, 2).repeat_interleave(times, 3)


def captioned(images: Sequence[np.ndarray | None], captions: Sequence[str], columns: int) -> Image.Image:
    """Images, uint8 (S, S, 3), in rows of `columns`, resized to 96 px, each above its caption: one or two lines,
    cut at its right edge. A gray tile stands for None.
    """
    side, wide, high = 96, 102, 126
    sheet = Image.new("RGB", (columns * wide, max(1, -(-len(images) // columns)) * high), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font("".join(captions), 10)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * wide, row * high
        if pixels is None:
            sheet.paste(_MISSING, (left, top, left + side, top + side))
        else:
            sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
        short = "\n".join(_shortened(line, font, side) for line in caption.split("\n"))
        draw.multiline_text((left, top + side + 1), short, fill=_INK, font=font, spacing=1)
    return sheet


def _font(text: str, size: int) -> _Font:
    """Pillow's font; for letters that aren't ASCII, which it shows as boxes, that of the charts, which is wider."""
    if text.replace("…", "").isascii():
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _shortened(text: str, font: _Font, width: int) -> str:
    """The start of a line that is at most `width` px long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def animation(frames: Sequence[Image.Image]) -> bytes:
    """Frames, all of one size, as an animated WebP that loops. They take about 8 s; the last one stays for 2 s.

    Empty without frames.
    """
    if not frames:
        return b""
    buffer = io.BytesIO()
    durations = [round(8000 / len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=80, method=2
    )
    return buffer.getvalue()


def png(picture: Image.Image, compress_level: int = 6) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def spread(count: int, of: int) -> np.ndarray:
    """`count` indices spread evenly over `of` items; all of them if there are fewer."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).astype(int))
