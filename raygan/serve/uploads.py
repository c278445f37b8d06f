"""Uploaded images: judged by their first bytes and their header before a pixel is decoded.

Names and content types that a client sends are not looked at, and nothing that it sends is opened as a path or an
address. What Pillow can decode and what is let in are two things: only formats that people have photos in, none of
the rarely used decoders.
"""

from __future__ import annotations

import numpy as np

from raygan.data.decode import Unreadable, decode, read_header, to_square
from raygan.serve.messages import Pixels
from raygan.serve.problems import Problem

#: Formats that are let in. MPO is what many phones write: a JPEG with further pictures behind it.
ACCEPTED = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "AVIF")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")


def decode_upload(data: bytes, size: int, *, most_megapixels: float, field: str) -> Pixels:
    """An upload's centre as an image (size, size, 3). Raises Problem that names the field."""
    try:
        if not _accepted(data):
            raise Unreadable("empty" if not data else f"not an image of a kind that is taken: {', '.join(ACCEPTED)}")
        header = read_header(data)
        if header.image.format not in ACCEPTED:
            raise Unreadable(f"not an image of a kind that is taken: {', '.join(ACCEPTED)}")
        if header.megapixels > most_megapixels:
            size_text = f"{header.width} x {header.height} pixels; {most_megapixels:g} megapixels are the most"
            raise Problem(413, f"{size_text}", field=field)
        if header.image.format in ("JPEG", "MPO"):
            header.image.draft("RGB", (2 * size, 2 * size))  # decodes at an eighth of the size where that is enough
        square = to_square(decode(header), size, "crop")
    except Unreadable as error:
        raise Problem(422, _public(str(error)), field=field) from None
    return np.asarray(square, np.uint8)


def _accepted(data: bytes) -> bool:
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    avif = data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")
    return data.startswith(_SIGNATURES) or webp or avif


def _public(reason: str) -> str:
    """A decoder's words, without objects' addresses."""
    return reason.split("<")[0].strip()[:200] or "damaged"
