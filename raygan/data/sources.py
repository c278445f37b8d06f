"""Where photos are: files under folders, globs and URIs, and rows of Parquet files.

The mental model:

1. Each `--input` becomes a `Source`: a root and, for globs and single files, a pattern that its files must match.
2. `find_photos` walks every source in sorted order into one `Listing`: a row for every photo (a file, or a row of a
   Parquet file) with its label, and counts of the files left aside, by reason.
3. Labels come from names (`raygan.data.labels`) before anything is decoded. `Listing.describe` puts in words how.

Nothing here decodes an image or needs Ray.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygan import addresses
from raygan.data import labels
from raygan.data.labels import Layout, is_image_name, normalize
from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.runtime.storage import resolve

SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # index into Listing.sources
        ("path", pa.binary()),  # relative to the source's root, in the file system's own bytes
        ("row", pa.int64()),  # row of a Parquet file; -1 if the file itself is the photo
        ("size", pa.int64()),  # bytes; 0 for Parquet rows
        ("changed", pa.int64()),  # modification time in ns; 0 if unknown
        ("label", pa.string()),
    ]
)


@dataclass(frozen=True)
class Source:
    """One input, resolved.

    Attributes:
        address: as the user gave it.
        root: a local folder or a URI.
        pattern: what paths below the root must match, segment by segment; empty for all files.
        image_column: column of photos in Parquet files; empty to guess it.
        label_column: column of labels in Parquet files; empty to guess it.
    """

    address: str
    root: str
    pattern: tuple[str, ...] = ()
    image_column: str = ""
    label_column: str = ""

    @property
    def local(self) -> bool:
        """Whether the root is a path in this machine's file system."""
        return not addresses.is_remote(self.root)

    def exists(self) -> bool:
        """Whether the root is still there."""
        if self.local:
            return os.path.isdir(self.root)
        filesystem, root = resolve(self.root)
        return bool(filesystem.get_file_info(root).type == pafs.FileType.Directory)

    def read(self, path: bytes, count: int = -1) -> bytes:
        """A file's content, or its first `count` bytes. Raises OSError."""
        if self.local:
            with open(os.path.join(os.fsencode(self.root), path), "rb") as file:
                return file.read(count)
        filesystem, root = resolve(self.root)
        with filesystem.open_input_file(posixpath.join(root, path.decode())) as file:
            return bytes(file.read(None if count < 0 else count))

    def parquet(self, path: bytes) -> pq.ParquetFile:
        """An open Parquet file. Raises OSError or pyarrow.ArrowException."""
        if self.local:
            return pq.ParquetFile(os.path.join(self.root, os.fsdecode(path)))
        filesystem, root = resolve(self.root)
        return pq.ParquetFile(filesystem.open_input_file(posixpath.join(root, path.decode())))


@dataclass
class Listing:
    """All photos found, and what was left aside.

    Attributes:
        sources: the inputs.
        photos: a table of `SCHEMA`.
        ignored: files left aside, by reason.
        layouts: for each source, where labels come from, in words.
    """

    sources: list[Source]
    photos: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    layouts: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The layout and label counts in words, one line per source."""
        lines = []
        for number, source in enumerate(self.sources):
            found = self.photos.filter(pa.compute.equal(self.photos["source"], number))["label"]
            counts = sorted(Counter(found.to_pylist()).items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{count:,} {label}" for label, count in counts[:12])
            more = f" and {len(counts) - 12} more labels" if len(counts) > 12 else ""
            lines.append(f"{source.address}: {self.layouts[number]}: {shown}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _File:
    path: str  # relative to the root, surrogate-escaped where it isn't UTF-8
    size: int
    changed: int
    regular: bool


def find_photos(
    inputs: Sequence[str],
    *,
    label: str | None = None,
    layout: Layout = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    exclude: str | None = None,
) -> Listing:
    """List the photos of all inputs with their labels, in sorted order.

    Args:
        inputs: folders, globs, files or URIs.
        label: the label of every photo, if given.
        layout: where labels come from.
        image_column: column of photos in Parquet files; None to guess it.
        label_column: column of labels in Parquet files; None to guess it.
        exclude: the output folder, which is not an input even if it lies inside one.

    Raises:
        ConfigurationError: an input is missing or empty, or has no labels. The message names it.
    """
    listing = Listing([], SCHEMA.empty_table())
    tables = []
    names = {addresses.name(address) for address in inputs}
    for number, address in enumerate(inputs):
        source = _source(address, image_column or "", label_column or "")
        files = sorted(_matching(source, exclude), key=lambda file: os.fsencode(file.path))
        if not files:
            raise ConfigurationError(f"--input: there are no files in {address}")
        fallback = addresses.name(source.root) if len(names) == len(inputs) > 1 else None
        sorter = _Sorter(source, number, listing.ignored, label=label, layout=layout, fallback=fallback)
        tables.append(sorter.sort(files))
        listing.sources.append(source)
        listing.layouts.append(sorter.layout)
    listing.photos = pa.concat_tables(tables).combine_chunks()
    if not listing.photos.num_rows:
        raise ConfigurationError(f"--input: there are no photos in {', '.join(inputs)}")
    return listing


def shown(path: bytes, row: int = -1) -> str:
    """A photo's path as text: undecodable bytes are escaped, and a Parquet row follows a ``#``."""
    text = path.decode("utf-8", "backslashreplace")
    return text if row < 0 else f"{text}#{row}"


def image_bytes(column: pa.ChunkedArray | pa.Array) -> Iterator[bytes | None]:
    """The bytes of each photo of an image column."""
    for value in column.to_pylist():
        yield value.get("bytes") if isinstance(value, dict) else value


# ---------------------------------------------------------------- finding files


def _source(address: str, image_column: str, label_column: str) -> Source:
    place, query = addresses.split_query(address)
    segments = place.split("/")
    magic = next((i for i, part in enumerate(segments) if any(c in part for c in "*?[")), None)
    if magic is not None and (addresses.is_remote(address) or not os.path.exists(address)):
        root = ("/".join(segments[:magic]) or ("/" if address.startswith("/") else ".")) + query
        pattern = tuple(segments[magic:])
    else:
        root, pattern = address, ()
    filesystem, path = resolve(root)
    try:
        kind = filesystem.get_file_info(path).type
    except OSError as error:
        raise RayganError(f"--input: cannot open {address}: {first_line(error)}") from None
    if kind == pafs.FileType.NotFound:
        raise ConfigurationError(f"--input: {root} does not exist")
    if not addresses.is_remote(root):
        root = path
    if kind == pafs.FileType.File:
        root, pattern = addresses.parent(root), (_literal(posixpath.basename(path)),)
    return Source(address, root or "/", pattern, image_column, label_column)


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _matching(source: Source, exclude: str | None) -> Iterator[_File]:
    walk = _walk_local(source, exclude) if source.local else _walk_remote(source, exclude)
    for file in walk:
        if not source.pattern or _matches(file.path.split("/"), source.pattern):
            yield file


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path or one of its folders matches; ``**`` stands for any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts))) if pattern[1:] else True
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _walk_local(source: Source, exclude: str | None) -> Iterator[_File]:
    """Files below the root. Links to folders are followed, but each real folder is walked once."""
    excluded = os.path.realpath(exclude) if exclude and not addresses.is_remote(exclude) else None
    folders, visited = [""], set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(os.path.join(source.root, folder))
        if real == excluded or real in visited:
            continue
        visited.add(real)
        try:
            entries = list(os.scandir(os.path.join(source.root, folder)))
        except PermissionError as error:
            raise RayganError(f"--input: no permission to list {error.filename}") from None
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                folders.append(path)
                continue
            try:
                status = entry.stat()
            except OSError:  # a dangling link, or gone since it was listed
                yield _File(path, 0, 0, regular=entry.is_symlink())
                continue
            yield _File(path, status.st_size, status.st_mtime_ns, regular=stat.S_ISREG(status.st_mode))


def _walk_remote(source: Source, exclude: str | None) -> Iterator[_File]:
    filesystem, root = resolve(source.root)
    excluded = resolve(exclude)[1] + "/" if exclude and addresses.is_remote(exclude) else None
    try:
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise RayganError(f"--input: cannot list {source.address}: {first_line(error)}") from None
    for info in found:
        if info.type == pafs.FileType.File and not (excluded and info.path.startswith(excluded)):
            yield _File(info.path[len(root) :].lstrip("/"), info.size, info.mtime_ns or 0, regular=True)


# ---------------------------------------------------------------- from files to photos


class _Sorter:
    """Sorts one source's files into photos with labels, and files left aside."""

    def __init__(
        self,
        source: Source,
        number: int,
        ignored: Counter[str],
        *,
        label: str | None,
        layout: Layout,
        fallback: str | None,
    ):
        self.source, self.number, self.ignored = source, number, ignored
        self.label, self.wanted, self.fallback = label, layout, fallback
        self.layout = ""

    def sort(self, files: Sequence[_File]) -> pa.Table:
        """The photos among these files, as a table of `SCHEMA`."""
        photos, tables = [], []
        for file in files:
            if not file.regular:
                self.ignored["not a regular file"] += 1
            elif any(part.startswith(".") or part == "__MACOSX" for part in file.path.split("/")):
                self.ignored["hidden file"] += 1
            elif file.path.lower().endswith(".parquet"):
                tables.append(file)
            else:
                photos.append(file)
        rows = [self._rows(file) for file in tables] if self.wanted in ("auto", "columns") else []
        if self.wanted == "columns":
            self.ignored["not Parquet"] += len(photos)
            photos = []
        parts = [*rows, *([self._files(photos)] if photos else [])]
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _files(self, files: Sequence[_File]) -> pa.Table:
        named = [file.path for file in files if is_image_name(file.path)] or [file.path for file in files]
        self.layout, label_of = labels.rule(
            named, self.source.address, label=self.label, layout=self.wanted, fallback=self.fallback
        )
        kept = []
        for file in files:
            label = label_of(file.path)
            if label:
                kept.append((file, normalize(label)))
            else:
                self.ignored["no label" if is_image_name(file.path) else "not an image"] += 1
        return pa.table(
            {
                "source": [self.number] * len(kept),
                "path": [os.fsencode(file.path) for file, _ in kept],
                "row": [-1] * len(kept),
                "size": [file.size for file, _ in kept],
                "changed": [file.changed for file, _ in kept],
                "label": [label for _, label in kept],
            },
            schema=SCHEMA,
        )

    def _rows(self, file: _File) -> pa.Table:
        path = os.fsencode(file.path)
        try:
            with self.source.parquet(path) as parquet:
                image, label = labels.columns(parquet.schema_arrow, self.source.image_column, self.source.label_column)
                found = self._row_labels(parquet, label)
                count = parquet.metadata.num_rows
        except (OSError, pa.ArrowException):
            # List the whole file as one photo: reading it will find it unreadable.
            return self._table(path, [-1], file, [normalize(self.label or "unknown")])
        if image is None:
            self.ignored["Parquet without photos"] += 1
            return SCHEMA.empty_table()
        if found is None:
            raise ConfigurationError(
                f"--input: no label column found in {shown(path)}; its columns are "
                f"{', '.join(parquet.schema_arrow.names)}: name one with --label-column, or give --label"
            )
        self.layout = f"Parquet rows, photos in column {image}, labels in {label or '--label'}"
        return self._table(path, range(count), file, found)

    def _table(self, path: bytes, rows: Sequence[int], file: _File, found: Sequence[str]) -> pa.Table:
        count = len(rows)
        return pa.table(
            {
                "source": [self.number] * count,
                "path": [path] * count,
                "row": list(rows),
                "size": [0 if row >= 0 else file.size for row in rows],
                "changed": [file.changed] * count,
                "label": found,
            },
            schema=SCHEMA,
        )

    def _row_labels(self, parquet: pq.ParquetFile, column: str | None) -> list[str] | None:
        if self.label is not None:
            return [normalize(self.label)] * int(parquet.metadata.num_rows)
        if column is None:
            return None
        values = parquet.read(columns=[column])[column].to_pylist()
        names = labels.class_names(parquet.schema_arrow, column)
        known = {value: normalize(names[value] if names else str(value)) for value in set(values)}
        return [known[value] for value in values]
