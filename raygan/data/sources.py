"""Where photos are: files under folders, in archives, at globs and URIs, and rows of Parquet files.

Each `--input` becomes a `Source`: a root with, for globs, a pattern that its files must match and, for single files,
their names. `files` walks it, and `Source.read` and `Source.parquet` open what was found, in any process. Nothing here
decodes an image or needs Ray.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygan import addresses
from raygan.data import archives
from raygan.data.files import File
from raygan.data.kinds import TABLES, ending, is_archive_name, is_image_name
from raygan.errors import ConfigurationError, RayganError, first_line, reason
from raygan.runtime.storage import FAILURES, entries, resolve

#: Names in an output folder that tell it from one of photos: the manifest, and the folder of unfinished work.
_OURS = frozenset({"manifest.json", ".prepare"})


@dataclass(frozen=True)
class Source:
    """One input, resolved.

    Attributes:
        address: as the user gave it.
        root: a local folder, a local archive or a URI.
        pattern: what paths below the root must match, segment by segment; empty for all files.
        names: of the only files that count, which lie in the root; empty for all.
        image_column: column of photos in Parquet files; empty to guess it.
        label_column: column of labels in Parquet files; empty to guess it.
        archive: the root is an archive.
        plain: of a compressed tar, the copy without compression that files are read from; else empty.
    """

    address: str
    root: str
    pattern: tuple[str, ...] = ()
    image_column: str = ""
    label_column: str = ""
    names: tuple[str, ...] = ()
    archive: bool = False
    plain: str = ""

    @property
    def local(self) -> bool:
        """Whether the root is a path in this machine's file system."""
        return not addresses.is_remote(self.root)

    @property
    def compressed(self) -> bool:
        """Whether files can be read only from a copy without compression."""
        return self.archive and archives.is_compressed_tar(self.root)

    def exists(self) -> bool:
        """Whether the root is still there."""
        if self.local:
            return os.path.isfile(self.root) if self.archive else os.path.isdir(self.root)
        filesystem, root = resolve(self.root)
        return bool(filesystem.get_file_info(root).type == pafs.FileType.Directory)

    def read(self, path: bytes, count: int = -1) -> bytes:
        """A file's content, or its first `count` bytes. Raises OSError."""
        if self.archive:
            return archives.read(self.root, self.plain or self.root, os.fsdecode(path), count)
        if self.local:
            with open(os.path.join(os.fsencode(self.root), path), "rb") as file:
                return file.read(count)
        filesystem, root = resolve(self.root)
        with filesystem.open_input_file(posixpath.join(root, path.decode())) as file:
            return bytes(file.read(None if count < 0 else count))

    def parquet(self, path: bytes) -> pq.ParquetFile:
        """An open Parquet file. Raises OSError or pyarrow.ArrowException."""
        if self.archive:
            return pq.ParquetFile(io.BytesIO(self.read(path)))
        if self.local:
            return pq.ParquetFile(os.path.join(self.root, os.fsdecode(path)))
        filesystem, root = resolve(self.root)
        return pq.ParquetFile(filesystem.open_input_file(posixpath.join(root, path.decode())))

    def look(self, paths: Sequence[str]) -> list[File | None]:
        """The files at these paths, None for one that doesn't exist. Raises OSError if the storage doesn't answer."""
        if self.archive:
            there = {archives.name_of(file.path): file for file in files(self)}
            return [there.get(archives.name_of(path)) for path in paths]
        filesystem, root = resolve(self.root)
        infos = filesystem.get_file_info([posixpath.join(root, path) for path in paths])
        return [
            File(path, info.size, info.mtime_ns or 0, regular=True) if info.type == pafs.FileType.File else None
            for path, info in zip(paths, infos, strict=True)
        ]


def check_apart(source: Source, output: str | None) -> None:
    """Raise ConfigurationError if the output folder is the input itself, or one inside it that holds other files."""
    if output is None or source.archive:
        return
    filesystem, root = resolve(source.root)
    theirs, place = resolve(output)
    if filesystem != theirs:
        return
    if source.local:
        root, place = os.path.realpath(root), os.path.realpath(place)
    if place == root:
        raise ConfigurationError(
            f"--output: {output} is an input, and shards among the photos would be taken for photos: "
            f"give another folder, which may lie inside it"
        )
    inside = place.startswith(posixpath.join(root, ""))
    names = entries(output) if inside else {}
    if names and _OURS.isdisjoint(names):
        raise ConfigurationError(
            f"--output: {output} lies in the input and holds other files, which would not be read: give a new folder"
        )


def shown(path: bytes, row: int = -1) -> str:
    """A photo's path as text: undecodable bytes are escaped, and a Parquet row follows a ``#``."""
    text = path.decode("utf-8", "backslashreplace")
    return text if row < 0 else f"{text}#{row}"


def image_bytes(column: pa.ChunkedArray | pa.Array) -> Iterator[bytes | None]:
    """The bytes of each photo of an image column."""
    for value in column.to_pylist():
        yield value.get("bytes") if isinstance(value, dict) else value


# ---------------------------------------------------------------- finding files


def open_source(address: str, image_column: str, label_column: str) -> Source:
    """The source that an address given as an input stands for. Raises ConfigurationError if it doesn't exist."""
    place, query = addresses.split_query(address)
    segments = place.split("/")
    magic = next((i for i, part in enumerate(segments) if any(c in part for c in "*?[")), None)
    if magic is not None and (addresses.is_remote(address) or not os.path.exists(address)):
        root = ("/".join(segments[:magic]) or ("/" if address.startswith("/") else ".")) + query
        pattern = tuple(segments[magic:])
    else:
        root, pattern = address, ()
    if root.startswith(("http://", "https://")):
        raise ConfigurationError(f"--input: {addresses.public(address)} is on the web: download it and give its path")
    filesystem, path = resolve(root)
    try:
        kind = filesystem.get_file_info(path).type
    except FAILURES as error:
        raise RayganError(f"--input: cannot open {address}: {first_line(error)}") from None
    if kind == pafs.FileType.NotFound:
        raise ConfigurationError(f"--input: {root} does not exist")
    if kind == pafs.FileType.Unknown:
        raise ConfigurationError(f"--input: {root} is neither a file nor a folder")
    if not addresses.is_remote(root):
        root = path
    if kind == pafs.FileType.File and is_archive_name(path):
        if addresses.is_remote(address):
            raise ConfigurationError(f"--input: {address} is an archive: copy it to a disk, or unpack it there")
        return Source(address, root, (), image_column, label_column, archive=True)
    if kind == pafs.FileType.File:
        if ending(path) in TABLES:
            raise ConfigurationError(f"--input: {address} is a table: give the folder of the photos that it names")
        root = addresses.parent(root) or "/"
        return Source(address, root, (), image_column, label_column, names=(posixpath.basename(path),))
    return Source(address, root or "/", pattern, image_column, label_column)


def joined(sources: Sequence[Source]) -> list[Source]:
    """The sources; photos of one folder that were named one by one, as a shell does for ``*.jpg``, are one source."""
    groups: dict[object, list[Source]] = {}
    for number, source in enumerate(sources):
        alone = not source.names or not is_image_name(source.names[0])
        groups.setdefault(number if alone else source.root, []).append(source)
    return [
        replace(group[0], address=group[0].root, names=tuple(dict.fromkeys(one.names[0] for one in group)))
        if len(group) > 1
        else group[0]
        for group in groups.values()
    ]


def files(source: Source, exclude: str | None = None) -> Iterator[File]:
    """The files of a source, in no order.

    Args:
        source: to walk.
        exclude: a folder that is no input even if it lies inside one.

    Raises:
        RayganError: a folder can't be listed.
    """
    if source.archive:
        for member in archives.members(source.root):
            yield File(member.path, member.size, member.changed, member.regular)
        return
    if source.names:
        yield from (file for file in source.look(source.names) if file)
        return
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


def _walk_local(source: Source, exclude: str | None) -> Iterator[File]:
    """Files below the root. Links to folders are followed, but each real folder is walked once, not by a link first."""
    excluded = os.path.realpath(exclude) if exclude and not addresses.is_remote(exclude) else None
    folders, visited = deque([""]), set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(os.path.join(source.root, folder))
        if real == excluded:
            continue
        if real in visited:
            yield File(folder, 0, 0, regular=False)  # a link to a folder whose photos are known
            continue
        visited.add(real)
        try:
            with os.scandir(os.path.join(source.root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        (folders.appendleft if entry.is_symlink() else folders.append)(path)
                    else:
                        yield _file(entry, path, source.root)
        except FileNotFoundError:
            continue  # gone since it was listed
        except OSError as error:
            place = addresses.join(source.root, folder)
            raise RayganError(f"--input: cannot list {place}: {reason(error)}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one into a folder that may not be entered
        return False


def _file(entry: os.DirEntry[str], path: str, root: str) -> File:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a dangling link, which is a photo that can't be read, or gone since listed
        return File(path, 0, 0, regular=entry.is_symlink())
    except PermissionError as error:  # of a folder that may be listed but not entered
        place = addresses.join(root, posixpath.dirname(path))
        raise RayganError(f"--input: cannot read the files in {place}: {reason(error)}") from None
    except OSError:  # a link to itself, among others
        return File(path, 0, 0, regular=False)
    return File(path, status.st_size, status.st_mtime_ns, regular=stat.S_ISREG(status.st_mode))


def _walk_remote(source: Source, exclude: str | None) -> Iterator[File]:
    filesystem, root = resolve(source.root)
    excluded = resolve(exclude)[1] + "/" if exclude and addresses.is_remote(exclude) else None
    try:
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except FAILURES as error:
        raise RayganError(f"--input: cannot list {source.address}: {first_line(error)}") from None
    for info in found:
        if info.type == pafs.FileType.File and not (excluded and info.path.startswith(excluded)):
            yield File(info.path[len(root) :].lstrip("/"), info.size, info.mtime_ns or 0, regular=True)
