"""Where photos are: files under folders, globs and URIs, and rows of Parquet files, with a label for each.

The mental model:

1. An `--input` becomes a `Source`: a root, and perhaps a pattern that its files must match.
2. `find_photos` walks every source in sorted order and makes one `Listing`: a row for every photo (a file, or
   a row of a Parquet file), and a count for every file that is left aside and why.
3. The layout is guessed for each source from names alone, before anything is decoded: class folders, names
   such as ``cat.123.jpg``, or Parquet columns. `Listing.describe` says the guess in words.

Nothing here decodes an image, and nothing needs Ray.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygan import addresses
from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.runtime.storage import resolve

Layout = Literal["auto", "folders", "names", "columns"]

#: Endings that say "photo". Files with other endings are photos only if their first bytes say so.
IMAGE_ENDINGS = frozenset(
    """
    .jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .heic .heif
    .tga .ico
    """.split()  # noqa: SIM905 - a list of quoted words would take a screen
)

#: Folder names that sort files by purpose, never by class.
_CONTAINERS = frozenset(
    """
    train training train_set training_set test testing test_set val valid validation val_set validation_set
    data dataset datasets image images img imgs photo photos picture pictures pic pics input raw original
    originals all jpeg jpg png
    """.split()  # noqa: SIM905 - a list of quoted words would take a screen
)

#: Name prefixes that cameras and programs give, which name no class.
_GENERIC = frozenset(
    """
    img image images photo photos pic pics picture pictures dsc dscn dscf dcim pxl p pict mvi screenshot scan
    frame file untitled download thumb crop face sample x n im
    """.split()  # noqa: SIM905 - a list of quoted words would take a screen
)

_NAME_WITH_NUMBER = re.compile(r"^(?P<label>.*?[^\W\d_].*?)[ ._\-]*\(?\d[\d ._\-()]*$", re.DOTALL)

SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # index into Listing.sources
        ("path", pa.binary()),  # relative to the source's root, in the file system's own bytes
        ("row", pa.int64()),  # row of a Parquet file; -1 for a file that is the photo itself
        ("size", pa.int64()),  # bytes; of Parquet rows 0
        ("changed", pa.int64()),  # modification time in ns, 0 where there is none
        ("label", pa.string()),
    ]
)


@dataclass(frozen=True)
class Source:
    """One input, resolved.

    address: as the user gave it. root: a local folder or a URI. pattern: what paths under the root must
    match, segment by segment; empty for all. image_column, label_column: of Parquet files; empty means guess.
    """

    address: str
    root: str
    pattern: tuple[str, ...] = ()
    image_column: str = ""
    label_column: str = ""

    @property
    def local(self) -> bool:
        """Whether the root is a path of this machine's file system."""
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
        """A Parquet file, opened. Raises OSError or pyarrow.ArrowException."""
        if self.local:
            return pq.ParquetFile(os.path.join(self.root, os.fsdecode(path)))
        filesystem, root = resolve(self.root)
        return pq.ParquetFile(filesystem.open_input_file(posixpath.join(root, path.decode())))


@dataclass
class Listing:
    """Every photo found, and what was left aside.

    photos: a table of `SCHEMA`. ignored: files left aside by reason. layouts: the guess for each source.
    """

    sources: list[Source]
    photos: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    layouts: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The layouts and label counts in words, a line for each source."""
        lines = []
        for number, source in enumerate(self.sources):
            labels = self.photos.filter(pa.compute.equal(self.photos["source"], number))["label"]
            counts = sorted(Counter(labels.to_pylist()).items(), key=lambda item: (-item[1], item[0]))
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

    label: the label of every photo. layout: how labels are found, or "auto". exclude: a folder that is not an
    input though it may lie inside one: the output.

    Raises ConfigurationError naming the input that is missing or empty, or whose labels can't be found.
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


def normalise(label: str) -> str:
    """One spelling for plural and case variants of a label: ``Cats``, ``cats`` and ``cat`` are ``cat``.

    English plural endings only; words that end in ss, us or is are singular as they are.
    """
    words = unicodedata.normalize("NFC", label).strip().casefold()
    words = re.sub(r"[\s_\-.]+", "_", words).strip("_")
    if len(words) > 4 and words.endswith("ies"):
        return words[:-3] + "y"
    if len(words) > 4 and words.endswith(("xes", "ches", "shes", "sses")):
        return words[:-2]
    if len(words) > 3 and words.endswith("s") and not words.endswith(("ss", "us", "is")):
        return words[:-1]
    return words


def shown(path: bytes, row: int = -1) -> str:
    """A photo's path as text: undecodable bytes are escaped, a Parquet row follows a ``#``."""
    text = path.decode("utf-8", "backslashreplace")
    return text if row < 0 else f"{text}#{row}"


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
    """A pattern that matches this name only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _matching(source: Source, exclude: str | None) -> Iterator[_File]:
    walk = _walk_local(source, exclude) if source.local else _walk_remote(source, exclude)
    for file in walk:
        if not source.pattern or _matches(file.path.split("/"), source.pattern):
            yield file


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, or a folder that it lies in, matches; ``**`` stands for any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts))) if pattern[1:] else True
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _walk_local(source: Source, exclude: str | None) -> Iterator[_File]:
    """Files below the root. Folders that are links are followed, each real folder once."""
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
            except OSError:  # a link to nowhere, or gone since it was listed
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


# ---------------------------------------------------------------- labels


class _Sorter:
    """Sorts one source's files into photos with labels and files left aside."""

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
        """Photos of these files, as a table of `SCHEMA`."""
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
        named = [file for file in files if is_image_name(file.path)] or list(files)
        label_of = self._rule([file.path for file in named])
        kept = []
        for file in files:
            label = label_of(file.path)
            if label:
                kept.append((file, normalise(label)))
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

    def _rule(self, paths: Sequence[str]) -> Callable[[str], str | None]:
        """How the label of a path is found, decided from the paths of the photos."""
        if self.label is not None:
            given = self.label
            self.layout = "one label for all"
            return lambda path: given
        level = _class_level(paths) if self.wanted in ("auto", "folders") else None
        by_name = _names_tell(paths) if self.wanted in ("auto", "names") else False
        if level is not None:
            folders = {normalise(label) for path in paths if (label := _folder_label(path, level))}
            if len(folders) > 1 or not by_name:
                loose = [path for path in paths if _folder_label(path, level) is None]
                if loose and _names_tell(loose):
                    self.layout = "class folders, and labels in names of files that lie in none"
                    return lambda path: _folder_label(path, level) or _name_label(path)
                self.layout = "class folders"
                return lambda path: _folder_label(path, level)
        if by_name:
            self.layout = "labels in file names"
            return _name_label
        if self.fallback and self.wanted == "auto" and _says_class(self.fallback):
            fallback = self.fallback
            self.layout = "the input folder's name"
            return lambda path: fallback
        if not any(map(is_image_name, paths)):
            raise ConfigurationError(
                f"--input: there is no photo in {self.source.address}: no file's name ends as an image's does; "
                f"if they are photos all the same, name their class with --label"
            )
        raise ConfigurationError(
            f"--input: no labels to be found in {self.source.address} (neither class folders nor names such as "
            f"cat.1.jpg; it has {paths[0]!r}): if all are of one class, name it with --label"
        )

    def _rows(self, file: _File) -> pa.Table:
        path = os.fsencode(file.path)
        try:
            with self.source.parquet(path) as parquet:
                image, label = columns(parquet.schema_arrow, self.source.image_column, self.source.label_column)
                labels = self._row_labels(parquet, label)
                count = parquet.metadata.num_rows
        except (OSError, pa.ArrowException):
            # The whole file is one unreadable thing; reading it again as a photo will say so.
            return self._table(path, [-1], file, [normalise(self.label or "unknown")])
        if image is None:
            self.ignored["Parquet without photos"] += 1
            return SCHEMA.empty_table()
        if labels is None:
            raise ConfigurationError(
                f"--input: no label column to be found in {shown(path)} (it has "
                f"{', '.join(parquet.schema_arrow.names)}): name it with --label-column, or give --label"
            )
        self.layout = f"Parquet rows, photos in column {image}, labels in {label or '--label'}"
        return self._table(path, range(count), file, labels)

    def _table(self, path: bytes, rows: Sequence[int], file: _File, labels: Sequence[str]) -> pa.Table:
        count = len(rows)
        return pa.table(
            {
                "source": [self.number] * count,
                "path": [path] * count,
                "row": list(rows),
                "size": [0 if row >= 0 else file.size for row in rows],
                "changed": [file.changed] * count,
                "label": labels,
            },
            schema=SCHEMA,
        )

    def _row_labels(self, parquet: pq.ParquetFile, column: str | None) -> list[str] | None:
        if self.label is not None:
            return [normalise(self.label)] * int(parquet.metadata.num_rows)
        if column is None:
            return None
        values = parquet.read(columns=[column])[column].to_pylist()
        names = _class_names(parquet.schema_arrow, column)
        known = {value: normalise(names[value] if names else str(value)) for value in set(values)}
        return [known[value] for value in values]


def is_image_name(path: str) -> bool:
    """Whether a file's ending says that it is a photo."""
    return posixpath.splitext(path)[1].lower() in IMAGE_ENDINGS


def _says_class(name: str) -> bool:
    """Whether a folder's name can be a class: it has a letter and isn't a container's name."""
    return normalise(name) not in _CONTAINERS | {normalise(c) for c in _CONTAINERS} and bool(
        re.search(r"[^\W\d_]", name)
    )


def _folders(path: str) -> list[str]:
    """The folders above a file that may be classes."""
    return [part for part in path.split("/")[:-1] if normalise(part) not in _CONTAINERS]


def _class_level(paths: Sequence[str]) -> int | None:
    """Which folder of `_folders` is the class: the first at which paths part, or the last if they never do."""
    chains = [chain for path in paths if (chain := _folders(path))]
    if not chains:
        return None
    level = 0
    while len({chain[level] for chain in chains}) == 1 and all(len(chain) > level + 1 for chain in chains):
        level += 1
    return level if all(_says_class(chain[level]) for chain in chains) else None


def _folder_label(path: str, level: int) -> str | None:
    chain = _folders(path)
    return chain[level] if len(chain) > level else None


def _name_label(path: str) -> str | None:
    stem = posixpath.splitext(posixpath.basename(path))[0]
    match = _NAME_WITH_NUMBER.match(stem)
    label = match.group("label").strip(" ._-(") if match else None
    return label if label and label.casefold() not in _GENERIC else None


def _names_tell(paths: Sequence[str]) -> bool:
    """Whether nearly all names carry a label, and the labels are few for the files."""
    labels = [_name_label(path) for path in paths]
    known = [normalise(label) for label in labels if label]
    return len(known) >= 0.9 * len(paths) and len(set(known)) <= max(1, len(paths) // 4)


# ---------------------------------------------------------------- Parquet columns


def columns(schema: pa.Schema, image: str = "", label: str = "") -> tuple[str | None, str | None]:
    """Names of the image-bytes column and of the label column; None for one that isn't there.

    A column counts as image bytes if it is binary, or a struct with a binary field ``bytes`` as dataset hubs
    have it. Raises ConfigurationError if a column that was asked for is missing.
    """
    for flag, name in (("--image-column", image), ("--label-column", label)):
        if name and name not in schema.names:
            raise ConfigurationError(f"{flag}: there is no column {name!r}; the file has {', '.join(schema.names)}")
    images = [item.name for item in schema if _holds_bytes(item.type)]
    texts = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)]
    numbers = [item.name for item in schema if pa.types.is_integer(item.type)]
    likely = ("label", "labels", "class", "category", "target", "breed", "species", "animal")
    guesses = [name for name in likely if name in texts + numbers] + (texts if len(texts) == 1 else [])
    preferred = [name for name in ("image", "img", "photo", "picture", "jpg", "png") if name in images]
    return image or next(iter(preferred + images), None), label or next(iter(guesses), None)


def image_bytes(column: pa.ChunkedArray | pa.Array) -> Iterator[bytes | None]:
    """The bytes of each photo of an image column."""
    for value in column.to_pylist():
        yield value.get("bytes") if isinstance(value, dict) else value


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes that an integer column numbers, as Hugging Face's metadata has them."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in info]
