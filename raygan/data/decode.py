"""From the bytes of any image file to upright 8-bit RGB pixels, and on to a square of a given size.

The header is read before any pixel is decoded, so a caller can turn down a decompression bomb at no cost.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pillow_heif
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from raygan.data.kinds import in_place_of_a_file

Fit = Literal["crop", "pad"]

#: Formats that are decoded, if Pillow was built with them. Others are left out on purpose: for EPS, Pillow would
#: start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "ICO")

#: Maximum number of scans in a progressive JPEG; encoders write about ten. Each may cost as much as a whole photo.
MAX_SCANS = 64

#: Whether a byte after 0xFF makes a marker of a JPEG file that has a length, or ends the picture. Stuffed bytes, fill
#: bytes, TEM, RST and SOI don't.
_IS_MARKER = np.isin(np.arange(256), [0x00, 0x01, *range(0xD0, 0xD9), 0xFF], invert=True)
_END, _SCAN = 0xD9, 0xDA

#: Highest levels of 8, 10, 12 and 16 bits, which cameras have.
_LEVELS = (255, 1023, 4095, 65535)

#: Pillow's orders of two bytes, and those that take the lower one for the upper one.
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}

#: How Pillow reads the four bytes of gray and alpha in 16 bits each as they are: it has no swapped order for these.
_GRAY_BYTES = "RGBA"

#: First bytes of the formats that start with a signature (those of WebP, AVIF and HEIF come later).
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")

#: Brands of the files of the ISO base media format that are photos: AVIF and HEIF.
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

#: First bytes of formats that photos come in but that nothing here decodes.
_FOREIGN = {
    b"\xff\x0a": "JPEG XL photo",
    b"\0\0\0\x0cJXL ": "JPEG XL photo",
    b"FUJIFILMCCD-RAW": "camera RAW file",
    b"IIU\0": "camera RAW file",
    b"IIRO": "camera RAW file",
    b"8BPS": "Photoshop file",
    b"%PDF": "PDF file",
}


class Unreadable(Exception):  # noqa: N818 - a verdict on a photo, not a program error
    """The bytes are not an image, or a damaged one. The message says which."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself before decoding.

    Attributes:
        image: not decoded yet.
        width, height: px, as stored.
    """

    image: Image.Image
    width: int
    height: int

    def upright(self, decoded: Image.Image) -> tuple[int, int]:
        """Width and height in px that the upright photo would have at its whole size."""
        if decoded.width * decoded.height >= self.width * self.height:
            return decoded.size
        turned = (decoded.width < decoded.height) != (self.width < self.height)
        return (self.height, self.width) if turned else (self.width, self.height)

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.width * self.height / 1e6

    @property
    def aspect(self) -> float:
        """Long side over short side, at least 1."""
        return max(self.width, self.height) / max(1, min(self.width, self.height))


def looks_like_image(start: bytes) -> bool:
    """Whether a file's first bytes (at least 16) are those of an image."""
    riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    isobmff = start[4:8] == b"ftyp" and start[8:12] in _BRANDS
    return start.startswith(_SIGNATURES) or riff or isobmff


def read_header(data: bytes) -> Header:
    """Open an image without decoding it. Raises Unreadable, also for a JPEG with so many scans that it is an attack."""
    # Turns off Pillow's own size limit: the caller has a limit of its own. One text in a PNG may be as long as all of
    # them together: programs often write megabytes.
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    if not data:
        raise Unreadable("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise Unreadable(_not_an_image(data)) from None
    except Exception as error:  # damaged bytes can make Pillow raise anything
        raise Unreadable(f"damaged header: {error}") from None
    if image.format in ("JPEG", "MPO") and (scans := jpeg_scans(data)) > MAX_SCANS:
        raise Unreadable(f"JPEG with {scans} scans; the limit is {MAX_SCANS}")
    return Header(image, *image.size)


def jpeg_scans(data: bytes) -> int:
    """The number of scans of a JPEG file's first picture, found as libjpeg finds them: from marker to marker."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF) + 1
    places = places[_IS_MARKER[values[places]]]
    scans, position = 0, 2
    while (number := np.searchsorted(places, position + 1)) < len(places):
        end = int(places[number]) + 1
        marker = data[end - 1]
        if marker == _END:
            break
        scans += marker == _SCAN
        position = end + int.from_bytes(data[end : end + 2])
    return scans


def decode(header: Header, least: int | None = None) -> Image.Image:
    """The first frame as upright RGB. Raises Unreadable if the file is damaged.

    Applies the orientation, puts white behind transparent pixels, and reduces wider gray and colors to 8 bits.

    Args:
        header: of the file.
        least: a JPEG may be decoded at a half, a quarter or an eighth of its size, from fewer
            coefficients, if its short side keeps so many px; None for its whole size.
    """
    try:
        if least is not None and isinstance(header.image, JpegImageFile):
            header.image.draft(None, (least, least))
        _load(header.image)
        return _to_rgb(_upright(header.image))
    except Exception as error:  # see above
        raise Unreadable(str(error) or type(error).__name__) from None


def shrinks(header: Header, least: int) -> bool:
    """Whether `decode` gives fewer pixels than the file has, if it may: the photo is a JPEG and large enough."""
    return isinstance(header.image, JpegImageFile) and min(header.width, header.height) >= 2 * least


def to_square(photo: Image.Image, size: int, fit: Fit) -> Image.Image:
    """An RGB square of `size` px: the center of the photo, or all of it on black.

    Bicubic with antialiasing (Pillow widens the filter with the scale), as recommended by "On Aliased Resizing and
    Surprising Subtleties in GAN Evaluation" (Parmar et al. 2022, clean-FID).
    """
    if fit == "crop":
        return ImageOps.fit(photo, (size, size), Image.Resampling.BICUBIC)
    return ImageOps.pad(photo, (size, size), Image.Resampling.BICUBIC, color=(0, 0, 0))


def pixel_hash(photo: Image.Image) -> str:
    """SHA-256 in hex of an RGB photo's size and pixels: the same pixels give the same hash in any file format."""
    digest = hashlib.sha256(f"{photo.width}x{photo.height}:".encode())
    digest.update(photo.tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _load(image: Image.Image) -> None:
    """Decode. Of colors in 16 bits Pillow keeps the upper bytes, which are black where a program wrote fewer bits."""
    stream, lower = getattr(image, "fp", None), _lower_bytes(image)
    image.load()
    if lower and stream is not None and np.asarray(image).max() <= 4095 >> 8:
        stream.seek(0)
        again = Image.open(stream, formats=[str(image.format)])
        again.tile = lower
        low = np.asarray(again)
        values = np.asarray(image, np.uint16) * 256 + (low[..., [1, 1, 1, 3]] if lower[0].args == _GRAY_BYTES else low)
        image.paste(Image.fromarray(_in_8_bits(values, _LEVELS)))  # which keeps its orientation


def _lower_bytes(image: Image.Image) -> list[Any]:
    """The tiles of an image of 16 bits per color, to be read with the bytes swapped; empty for any other."""
    tiles = []
    for tile in getattr(image, "tile", []):
        kind, *more = [tile.args] if isinstance(tile.args, str) else tile.args or [""]
        colors, _, order = str(kind).partition(";")
        if tile.args == "LA;16B":
            tiles.append(tile._replace(args=_GRAY_BYTES))
            continue
        if colors not in ("RGB", "RGBA") or order not in _SWAPPED:
            return []
        tiles.append(tile._replace(args=(f"{colors};{_SWAPPED[order]}", *more)))
    return tiles


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return image  # the common case; exif_transpose would take a tenth of the decoding time to find out
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data is damaged, but the pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_gray(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """Gray in a type of more than 8 bits. The values themselves show their range.

    They are levels of the fewest bits that they fit in, or parts of 1 in a floating-point image.
    """
    values: np.ndarray = np.nan_to_num(np.asarray(image, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        eight = _in_8_bits((values - low) / max(high - low, 1e-6), (1,))
    else:
        eight = _in_8_bits(values, (1, *_LEVELS) if image.mode == "F" else _LEVELS)
    return Image.fromarray(eight).convert("RGB")


def _in_8_bits(values: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Values as levels of 8 bits, given the highest levels that they may have."""
    high = float(values.max())
    level = next((level for level in levels if high <= level), levels[-1])
    return np.round(values / level * 255).clip(0, 255).astype(np.uint8)


def _not_an_image(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return "HEIC or AVIF photo, damaged or of a kind that is not decoded: convert it to JPEG or PNG"
    foreign = next((name for start, name in _FOREIGN.items() if data.startswith(start)), None)
    if foreign or data[4:12] == b"ftypcrx ":
        return f"{foreign or 'camera RAW file'}: convert it to JPEG or PNG"
    instead = in_place_of_a_file(data[:512])
    return f"not an image: {instead}" if instead else "not an image"
