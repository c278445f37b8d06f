"""Chunks: what `prepare` knows about a few hundred photos, on disk between its passes.

A chunk is one Parquet file in the work folder. It has a row of `RECORD` for each of some photos of the listing, plus
the square of pixels if the photo was decoded, and a feature vector if outliers are filtered. Records are read without
the pixels, so a decision over millions of photos takes a few hundred bytes of memory per photo.

Each photo has a key, a digest of everything that its row depends on: the photo's name, size and time, and the settings
that affect pixels and verdicts. A row does not depend on the photos beside it. So what a chunk says of a key is correct
whichever run wrote it, a killed run resumes from its chunks, and a listing that has grown needs only new ones.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygan.data import faces, outliers
from raygan.data.arrow import whole
from raygan.data.contents import Content, contents
from raygan.data.decode import Fit
from raygan.data.examine import LARGEST, judge, look
from raygan.data.filters import Photo, Rules
from raygan.data.sources import Source, shown
from raygan.errors import RayganError, first_line
from raygan.runtime.storage import parent, resolve, write_bytes

#: Increment when the content of chunks changes for the same settings: older chunks are then ignored.
VERSION = 5

#: Side in px of the square given to the feature network, whatever the size of the shards' images: at 64 px, many
#: more faces would count as outliers.
LARGE = LARGEST

RECORD = pa.schema(
    [
        ("source", pa.int32()),  # index of the input
        ("path", pa.string()),  # relative to the input, as text
        ("label", pa.string()),
        ("bytes", pa.int64()),  # size of the encoded photo
        ("ignored", pa.bool_()),  # neither an image nor named like one
        ("reason", pa.string()),  # why the photo is rejected; null if it isn't (yet)
        ("score", pa.float64()),  # the measure behind the reason; null if there is none
        ("detail", pa.string()),
        ("width", pa.int32()),  # px; 0 if not an image
        ("height", pa.int32()),  # px
        ("brightness", pa.float32()),  # mean gray level, 0 to 255
        ("contrast", pa.float32()),  # standard deviation of gray levels, 0 to 127
        ("sharpness", pa.float32()),
        ("hash", pa.string()),  # of the pixels; empty if not decoded
        ("phash", pa.binary()),  # 8 bytes; empty if not decoded
    ]
)


@dataclass(frozen=True)
class PixelSettings:
    """The settings that a chunk's content depends on.

    Attributes:
        size: side of the squares, in px.
        fit: crop to the center square, or pad.
        rules: the filters in use on single photos.
        network: feature network; None for no feature vectors.
        network_digest: of its files, which tells it from an earlier one at the same path; empty for one by name.
        detector: of faces; None to keep whole photos.
    """

    size: int
    fit: Fit
    rules: Rules
    network: str | None = None
    network_digest: str = ""
    detector: faces.Detector | None = None


def keys_of(photos: pa.Table, sources: Sequence[Source], settings: PixelSettings) -> np.ndarray:
    """The keys of a listing's photos: uint64 (n,)."""
    # The column of labels, if given, isn't that of photos.
    columns = [f"{one.image_column}|{one.label_column}".rstrip("|") for one in sources]
    starts = [
        hashlib.sha256(f"{VERSION}|{settings}|{one.root}|{named}".encode())
        for one, named in zip(sources, columns, strict=True)
    ]
    keys = np.empty(photos.num_rows, np.uint64)
    for number, (source, *row) in enumerate(_rows(photos)):
        digest = starts[source].copy()
        digest.update(repr(row).encode())
        keys[number] = int.from_bytes(digest.digest()[:8], "little")
    return keys


def name_of(keys: np.ndarray) -> str:
    """The file name of a chunk of photos with these keys."""
    return f"chunk-{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}.parquet"


def digest_of(photos: pa.Table) -> bytes:
    """SHA-256 of a slice of a listing: names, rows, sizes, times and labels."""
    digest = hashlib.sha256()
    for row in _rows(photos):
        digest.update(repr(row).encode())
    return digest.digest()


def _rows(photos: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows of a listing; Python holds few of them at a time."""
    for batch in photos.to_batches(max_chunksize=4096):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def build_chunk(photos: pa.Table, sources: Sequence[Source], settings: PixelSettings) -> pa.Table:
    """Read, decode and judge a slice of the listing.

    Returns:
        A table of `RECORD` plus the columns `image` and `features`.

    Raises:
        RayganError: a whole input has vanished. (A single file that has vanished is unreadable.)
    """
    rows = photos.to_pylist()
    found = contents(rows, sources, settings.rules)
    ignored, sizes, seen = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata, which doesn't affect the pixels
        for row, content in zip(rows, found, strict=True):
            ignored.append(content is None)
            sizes.append(len(content) if isinstance(content, bytes) else row["size"])
            seen.append(_look(content, settings))
    judged = judge(seen, settings.rules)
    taken = ("reason", "score", "detail", "width", "height", "brightness", "contrast", "sharpness", "hash", "phash")
    columns = {
        "source": photos["source"],
        "path": [shown(row["path"], row["row"]) for row in rows],
        "label": photos["label"],
        "bytes": sizes,
        "ignored": ignored,
    } | {name: [getattr(photo, name) for photo in judged] for name in taken}
    columns["score"] = [None if math.isnan(score) else score for score in columns["score"]]
    table = pa.table(columns, schema=RECORD)
    vectors = _vectors([photo.large for photo in judged], settings.network)
    for name, values in (
        ("image", _images([photo.pixels for photo in judged], settings.size)),
        ("features", pa.array(vectors, pa.binary(2 * outliers.DIM))),
    ):
        table = table.append_column(name, values)
    return table


def write_chunk(address: str, table: pa.Table, keys: pa.ChunkedArray) -> None:
    """Write a chunk, with a column of keys, atomically. Raises RayganError if the address can't be written."""
    table = table.append_column("key", keys)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=["label"], write_statistics=False)
    write_bytes(address, sink.getvalue())


def read_records(addresses: Sequence[str]) -> pa.Table:
    """The records of these chunks, in order, without pixels. Raises RayganError if a chunk is damaged."""
    tables = [_read(address, RECORD.names) for address in addresses]
    return pa.concat_tables(tables).combine_chunks() if tables else RECORD.empty_table()


def read_pixels(address: str, rows: np.ndarray) -> np.ndarray:
    """Pixels of the given rows of a chunk, all of which must have some: uint8 (n, S, S, 3), in the order of `rows`."""
    return _pixels(_read(address, ["image"]), rows)


def read_photos(address: str, rows: np.ndarray) -> tuple[np.ndarray, pa.Table]:
    """Pixels, as from `read_pixels`, and the columns `label`, `path` and `hash` of the same rows."""
    table = _read(address, ["image", "label", "path", "hash"])
    return _pixels(table, rows), table.drop_columns(["image"]).take(pa.array(rows))


def read_features(address: str, rows: np.ndarray) -> np.ndarray:
    """Feature vectors of the given rows of a chunk, all of which must have one: float16 (n, DIM), in that order."""
    vectors = _read(address, ["features"])["features"].take(pa.array(rows))
    return np.frombuffer(b"".join(vectors.to_pylist()), np.float16).reshape(-1, outliers.DIM)


def read_keys(address: str) -> np.ndarray:
    """The keys of a chunk's photos: uint64 (n,); none of a chunk of earlier versions. Raises RayganError if damaged."""
    table = _read(address, ["key"])
    return table["key"].to_numpy() if "key" in table.column_names else np.empty(0, np.uint64)


def _read(address: str, names: Sequence[str]) -> pa.Table:
    filesystem, path = resolve(address)
    try:
        return pq.read_table(path, columns=list(names), filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise RayganError(
            f"cannot read {address}: {first_line(error)}; delete {parent(address)} and run the job again"
        ) from None


def _pixels(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    images = whole(table["image"])
    width = images.type.byte_width
    size = round((width / 3) ** 0.5)
    data = np.frombuffer(images.buffers()[1] or b"", np.uint8)
    pixels: np.ndarray = data[images.offset * width :].reshape(-1, size, size, 3)[rows]
    return pixels


# ---------------------------------------------------------------- from bytes to records


def _look(content: Content, settings: PixelSettings) -> Photo:
    if not isinstance(content, bytes):
        return content or Photo()
    large = LARGE if settings.network else None
    cut_face = faces.load_detector(settings.detector) if settings.detector else None
    return look(content, settings.size, settings.fit, settings.rules, large=large, cut_face=cut_face)


def _images(pictures: Sequence[np.ndarray | None], size: int) -> pa.Array:
    """Pictures (size, size, 3) as a column of fixed-size binaries; null for None."""
    there = np.array([picture is not None for picture in pictures])
    data = np.zeros((len(pictures), size * size * 3), np.uint8)
    for row, picture in zip(data, pictures, strict=True):
        if picture is not None:
            row[:] = picture.ravel()
    valid = pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(data.shape[1]), len(data), [valid, pa.py_buffer(data)])


def _vectors(pictures: Sequence[np.ndarray | None], network: str | None) -> list[bytes | None]:
    """The feature vector of each picture, as stored; None for None."""
    there = {number: picture for number, picture in enumerate(pictures) if picture is not None}
    vectors: list[bytes | None] = [None] * len(pictures)
    if network and there:
        embed = outliers.embedder(network)
        for number, vector in zip(there, embed(np.stack(list(there.values()))), strict=True):
            vectors[number] = vector.tobytes()
    return vectors
