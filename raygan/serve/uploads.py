"""Uploaded images, checked by their first bytes and their header before a pixel is decoded.

A client's file names and content types are ignored, and nothing it sends is opened as a path or a URL. Of the formats
that Pillow can decode, only those that people keep photos in are accepted, none with a rarely used decoder. Limits on
bytes come before: of a request in `middleware`, of a file in `api`.
"""

from __future__ import annotations

import numpy as np

from raygan.data.decode import Unreadable, decode, read_header, to_square
from raygan.serve.messages import Pixels

#: Accepted formats. MPO is what many phones write: a JPEG with further pictures behind it.
ACCEPTED = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "AVIF")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_UNSUPPORTED = f"not a supported image; the formats are {', '.join(ACCEPTED)}"


class Refused(Exception):  # noqa: N818 - a verdict on a file, not a program error
    """The upload isn't decoded. The message says why.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def decode_upload(data: bytes, size: int, *, max_megapixels: float) -> Pixels:
    """An upload's central square.

    Args:
        data: the file.
        size: side of the returned image, in px.
        max_megapixels: limit on the upload's own pixels.
    Returns:
        uint8 (size, size, 3).
    Raises:
        Refused: 413 for too many pixels, 422 for an unreadable or unsupported file.
    """
    try:
        if not _has_signature(data):
            raise Unreadable(_UNSUPPORTED if data else "empty")
        header = read_header(data)
        if header.image.format not in ACCEPTED:
            raise Unreadable(_UNSUPPORTED)
        if header.megapixels > max_megapixels:
            pixels = f"{header.width} x {header.height} pixels"
            raise Refused(413, f"{pixels}; the limit is {max_megapixels:g} megapixels")
        if header.image.format in ("JPEG", "MPO"):
            header.image.draft("RGB", (2 * size, 2 * size))  # decodes at down to an eighth of the size if that suffices
        square = to_square(decode(header), size, "crop")
    except Unreadable as error:
        raise Refused(422, _public(str(error))) from None
    return np.asarray(square, np.uint8)


def _has_signature(data: bytes) -> bool:
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    avif = data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")
    return data.startswith(_SIGNATURES) or webp or avif


def _public(reason: str) -> str:
    """A decoder's message without object addresses."""
    return reason.split("<")[0].strip()[:200] or "damaged"
