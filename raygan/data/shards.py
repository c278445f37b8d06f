"""Shards: the Parquet files between `prepare` and everything that trains or evaluates.

A data set is a folder:

    manifest.json                 written last, by a rename: a folder without it is not a data set
    train-00000.parquet ...       photos to train on
    validation-00000.parquet ...  held-out photos

Columns of every shard, one row per photo:

    image   fixed-size binary, S*S*3 bytes: uint8 RGB, row by row; with `encoding` "png": binary, a PNG file
    label   string: the class, such as "cat"
    path    string: the photo's path relative to its input
    hash    string: SHA-256 of the source's decoded, upright pixels, in hex; large JPEGs are decoded at a smaller scale
    split   string: "train" or "validation"

`Manifest` is the typed content of manifest.json; `read_shard` and `write_shard` read and write one file.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from raygan import pictures
from raygan.data.arrow import counts, whole
from raygan.data.labels import normalize
from raygan.data.stamps import MANIFEST as MANIFEST
from raygan.data.stamps import Stamps, is_same
from raygan.errors import ConfigurationError, RayganError, first_line, some
from raygan.runtime.storage import join, read_text, resolve, write_bytes, write_json

Split = Literal["train", "validation"]
Encoding = Literal["raw", "png"]

#: Errors that Arrow, Pillow and NumPy raise on damaged files, and on files that aren't shards.
_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, pa.ArrowException)

#: Pixels, uint8 (n, S, S, 3), and class indices, int64 (n,), as Ray's object store has them.
Stored = tuple[np.ndarray, np.ndarray]


class ShardFile(BaseModel):
    """One Parquet file: its name in the data set, its split, and its number of rows of each label."""

    model_config = ConfigDict(frozen=True)

    file: str
    split: Split
    rows: dict[str, int]


class Manifest(BaseModel):
    """What a data set holds.

    Attributes:
        image_size: px.
        classes: labels, sorted.
        fingerprint: SHA-256 of the shards' content: data sets with the same fingerprint train the same model.
        configuration: the settings of the `prepare` run that wrote it.
        inputs: SHA-256 of the names, sizes and times of the files it was made from.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    image_size: int
    encoding: Encoding = "raw"
    classes: list[str]
    shards: list[ShardFile]
    fingerprint: str
    configuration: dict[str, Any]
    inputs: str = ""

    def write(self, address: str) -> None:
        """Write the manifest into a folder of shards, which makes it a data set."""
        write_json(join(address, MANIFEST), self.model_dump(mode="json"))

    def count(self, split: Split, label: str | None = None) -> int:
        """Number of photos in a split, of one label or of all."""
        shards = [shard for shard in self.shards if shard.split == split]
        if label is None:
            return sum(sum(shard.rows.values()) for shard in shards)
        return sum(shard.rows.get(label, 0) for shard in shards)

    def labels(self, split: Split, label: str | None = None) -> tuple[str, ...]:
        """The given label, or all that have photos in a split."""
        if label:
            return (label,)
        found = {name for shard in self.shards if shard.split == split for name, rows in shard.rows.items() if rows}
        return tuple(name for name in self.classes if name in found)

    def contradiction(self) -> str | None:
        """What is wrong with the list of shards, as in "names a.parquet twice"; None if nothing is."""
        for file, times in Counter(shard.file for shard in self.shards).items():
            if times > 1:
                return f"names {file} twice"
        known = set(self.classes)
        for shard in self.shards:
            for label, rows in shard.rows.items():
                if label not in known:
                    return f"gives {shard.file} photos of {label!r}, which is not among its classes"
                if rows < 0:
                    return f"gives {shard.file} {rows} photos of {label!r}"
        return None

    def without_shards(self) -> Manifest:
        """What reading a shard needs to know: a list of thousands of shards must not travel with each task."""
        return self.model_copy(update={"shards": [], "configuration": {}})


@dataclass(frozen=True)
class DataSet:
    """A data set at an address: a local path, or a URI that pyarrow can open (``s3://``, ``gs://``)."""

    address: str
    manifest: Manifest

    @classmethod
    def open(cls, address: str) -> DataSet:
        """Read the manifest. Raises RayganError if it is missing or wrong."""
        path = join(address, MANIFEST)
        content = read_text(path)
        if content is None:
            raise RayganError(
                f"{address} holds no finished shards ({MANIFEST} is missing): write them with "
                f"`python jobs/prepare.py --input PHOTOS --output {address}`"
            )
        try:
            manifest = Manifest.model_validate(json.loads(content))
        except (ValueError, ValidationError):
            raise RayganError(f"{path} is not a manifest of this version: prepare the shards again") from None
        trouble = manifest.contradiction()
        if trouble:
            raise RayganError(f"{path} {trouble}: prepare the shards again")
        return cls(address, manifest)

    def check(self, *, image_size: int, label: str | None) -> None:
        """Raise ConfigurationError if the shards don't fit the given settings."""
        if image_size != self.manifest.image_size:
            raise ConfigurationError(
                f"--image-size: {self.address} holds {self.manifest.image_size} px images, not {image_size} px: "
                f"give --image-size {self.manifest.image_size}, or prepare shards with --image-size {image_size}"
            )
        if label is not None:
            self.check_label(label)

    def check_label(self, label: str) -> None:
        """Raise ConfigurationError if there are no photos of a label."""
        if label not in self.manifest.classes:
            spelled = normalize(label)
            has = f"spells it {spelled!r}" if spelled in self.manifest.classes else f"has {some(self.manifest.classes)}"
            raise ConfigurationError(f"--label: {self.address} has no label {label!r}; it {has}")

    @property
    def profile(self) -> dict[str, Any]:
        """What it holds, for MLflow: image size, and photos of each label in each split."""
        found: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
        for shard in self.manifest.shards:
            found[shard.split].update(shard.rows)
        photos = {split: {label: rows[label] for label in self.manifest.classes} for split, rows in found.items()}
        return {"image_size": self.manifest.image_size, **photos}

    def counts(self, split: Split, label: str | None = None) -> np.ndarray:
        """Photos of each class in each of `shards`: int32 (shards, classes)."""
        place = {name: number for number, name in enumerate(self.manifest.classes)}
        shards = self.shards(split, label)
        found = np.zeros((len(shards), len(place)), np.int32)
        for counted, shard in zip(found, shards, strict=True):
            for name, rows in shard.rows.items():
                counted[place[name]] = rows
        return found

    def shards(self, split: Split, label: str | None = None) -> list[ShardFile]:
        """The split's files with at least one photo of the label, in order."""
        return [
            shard
            for shard in self.manifest.shards
            if shard.split == split and (shard.rows.get(label, 0) if label else sum(shard.rows.values())) > 0
        ]


def read_shard(
    address: str, manifest: Manifest, shard: ShardFile, label: str | None = None, stamps: Stamps | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read one shard.

    Args:
        address: of the data set.
        manifest: of the data set, with or without its list of shards.
        shard: one of its shards.
        label: read only this label's photos.
        stamps: of the file and of the manifest, as the job found them, which nothing may have replaced since.

    Returns:
        Pixels, uint8 (n, 3, S, S), with the channels last in memory, and class indices, int64 (n,), in file order.

    Raises:
        RayganError: the file is damaged, missing, replaced, or not what the manifest says.
    """
    filesystem, root = resolve(address)
    path = posixpath.join(root, shard.file)
    try:
        if stamps is not None and not is_same(address, shard.file, manifest.fingerprint, stamps):
            raise RayganError(f"shard {path} was deleted or replaced while it was in use: prepare the shards again")
        # Mapped, a local file is copied once, from the page cache.
        local = isinstance(filesystem, pafs.LocalFileSystem)
        with pa.memory_map(path) if local else filesystem.open_input_file(path) as file:
            table = pq.ParquetFile(file).read(columns=["image", "label"], use_threads=not local)
        names = _labels(table, shard, path)
        pixels = _pixels(whole(table["image"]), manifest)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    known = np.array([manifest.classes.index(name) for name in names.dictionary.to_pylist()], np.int64)
    classes = known[names.indices.to_numpy()]
    if label is not None and len(names.dictionary) > 1:
        chosen = classes == manifest.classes.index(label)
        pixels, classes = pixels[chosen], classes[chosen]
    return pixels.transpose(0, 3, 1, 2), classes


def _labels(table: pa.Table, shard: ShardFile, path: str) -> pa.DictionaryArray:
    """The column of labels. Raises RayganError if the shard has others than the manifest says."""
    names = pc.dictionary_encode(whole(table["label"]))
    if counts(names) != {name: rows for name, rows in shard.rows.items() if rows}:
        raise RayganError(f"shard {path} has other photos than its manifest says: prepare the shards again")
    return names


def _unreadable(path: str, error: Exception) -> RayganError:
    return RayganError(f"cannot read shard {path} ({first_line(error)}): prepare the shards again")


def read_stored(address: str, manifest: Manifest, shard: ShardFile, label: str | None, stamps: Stamps) -> Stored:
    """A shard as the object store has it."""
    pixels, classes = read_shard(address, manifest, shard, label, stamps)
    return pixels.transpose(0, 2, 3, 1), classes


def check_rows(address: str, shard: ShardFile) -> None:
    """Check a shard's labels, without reading its pixels. Raises RayganError if it is damaged or has others."""
    filesystem, root = resolve(address)
    path = posixpath.join(root, shard.file)
    try:
        _labels(pq.ParquetFile(path, filesystem=filesystem).read(columns=["label"]), shard, path)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def write_shard(address: str, name: str, pixels: np.ndarray, about: pa.Table, split: Split, encoding: Encoding) -> str:
    """Write one shard atomically. The same photos give the same bytes.

    Args:
        address: of the data set.
        name: of the file.
        pixels: uint8 (n, S, S, 3).
        about: table with the columns `label`, `path` and `hash`.
        split: of all its photos.
        encoding: of the images.

    Returns:
        SHA-256 of the file in hex.

    Raises:
        RayganError: the address can't be written.
    """
    if encoding == "raw":
        flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
        kind = pa.binary(flat.shape[1])
        images = pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    else:
        images = pa.array([pictures.png(Image.fromarray(image)) for image in pixels], pa.binary())
    columns = {"image": images, **{column: about[column] for column in ("label", "path", "hash")}}
    table = pa.table({**columns, "split": pa.array([split] * len(pixels))})
    sink = pa.BufferOutputStream()
    # Text compresses well; pixels hardly do, and must load fast.
    compression = {column: "none" if column == "image" else "zstd" for column in table.column_names}
    pq.write_table(table, sink, compression=compression, use_dictionary=["label", "split"])
    content = sink.getvalue()
    write_bytes(join(address, name), content)
    return hashlib.sha256(content).hexdigest()


def _pixels(images: pa.Array, manifest: Manifest) -> np.ndarray:
    """Images, uint8 (n, S, S, 3), from a shard's image column."""
    size = manifest.image_size
    if manifest.encoding == "png":
        decoded = [np.asarray(Image.open(io.BytesIO(image.as_py()), formats=["PNG"])) for image in images]
        return np.array(decoded, np.uint8).reshape(len(decoded), size, size, 3)
    data = np.frombuffer(images.buffers()[1] or b"", np.uint8)
    row = size * size * 3
    if images.type != pa.binary(row):
        raise ValueError(f"its images are {images.type}, not {row} bytes each")
    return data[images.offset * row : (images.offset + len(images)) * row].reshape(-1, size, size, 3)
