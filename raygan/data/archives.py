"""Archives as folders: the files in a local ``.zip``, ``.tar`` or compressed ``.tar``, read in place.

Nothing is unpacked, so no name in an archive can lead outside of it, and links are never followed. A file is found by
its place in the archive. In a compressed tar, this means decompressing everything before it, which is fine for the few
tables and Parquet files that hold labels; for the photos, `plain_copy` writes it once without its compression.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tqdm import tqdm

from raygan.data.kinds import split_path, why_unreadable
from raygan.errors import ConfigurationError, RayganError, first_line, reason

#: Errors that the standard library raises on damaged archives.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)  # there are millions of them
class Member:
    """A file in an archive.

    Attributes:
        path: as the archive spells it.
        size: in bytes, decompressed.
        changed: a number that changes with its bytes: the checksum in a zip, the time of the archive itself of a tar.
        regular: neither a link nor a device.
        place: where its bytes begin in a plain tar.
    """

    path: str
    size: int
    changed: int
    regular: bool
    place: int = 0


def is_compressed_tar(path: str) -> bool:
    """Whether the archive has to be copied without its compression before files can be read from it."""
    name = path.lower()
    return not name.endswith((".zip", ".tar"))


def members(path: str) -> list[Member]:
    """The files in an archive; of several with one name, the last. Raises ConfigurationError if it is damaged."""
    try:
        zipped = path.lower().endswith(".zip")
        found = list(_zipped(path) if zipped else _in_tar(path, os.stat(path).st_mtime_ns))
    except (OSError, *_DAMAGED) as error:
        why = why_unreadable(lambda: _start(path), error)
        raise ConfigurationError(f"--input: cannot read the archive {path}: {why}") from None
    return list({name_of(member.path): member for member in found}.values())


def read(path: str, plain: str, member: str, count: int = -1) -> bytes:
    """The content of a file in an archive, or its first `count` bytes.

    Args:
        path: of the archive.
        plain: of the archive without its compression, if there is such a copy; else of the archive.
        member: the file's path in the archive.
        count: bytes to read; negative for all.

    Raises:
        OSError: there is no such file, or its bytes are damaged.
    """
    opened = _open(path, plain, os.stat(path).st_mtime_ns)
    try:
        return opened.read(member, count)
    except KeyError:
        raise FileNotFoundError(member) from None
    except _DAMAGED as error:
        raise OSError(0, first_line(error)) from None


def plain_copy(path: str, folder: str) -> str:
    """Write a compressed tar without its compression into a folder, unless that was done; its path."""
    about = os.stat(path)
    digest = hashlib.sha256(repr((path, about.st_size, about.st_mtime_ns)).encode("utf-8", "surrogateescape"))
    copy = os.path.join(folder, f"{digest.hexdigest()[:16]}.tar")
    if os.path.exists(copy):
        return copy
    os.makedirs(folder, exist_ok=True)
    try:
        with tarfile.open(path) as packed, open(f"{copy}.part", "wb") as file:
            stream = packed.fileobj
            with tqdm(desc=f"decompressing {os.path.basename(path)}", unit="B", unit_scale=True, leave=False) as bar:
                stream.seek(0)
                while block := stream.read(1 << 22):
                    file.write(block)
                    bar.update(len(block))
        os.replace(f"{copy}.part", copy)
    except (OSError, *_DAMAGED) as error:
        with suppress(OSError):
            os.unlink(f"{copy}.part")
        raise RayganError(f"cannot decompress {path} into {folder}: {reason(error)}") from None
    return copy


def plain_bytes(sizes: Sequence[int]) -> int:
    """Bytes of a tar without compression that holds files of these sizes, at most."""
    return sum(sizes) + 4 * tarfile.BLOCKSIZE * len(sizes) + tarfile.RECORDSIZE


def name_of(path: str) -> str:
    """One spelling of a path in an archive, for comparison: ``./cat/1.jpg`` is ``cat/1.jpg``."""
    return "/".join(split_path(path))


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _zipped(path: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for name, info in _named(archive):
            if info.flag_bits & 1:
                raise ConfigurationError(f"--input: the archive {path} is encrypted: unpack it first")
            kind = (info.external_attr >> 16) & 0o170000
            if not info.is_dir():
                # Archives made on other systems say nothing about the kind.
                yield Member(name, info.file_size, info.CRC, kind in (0, 0o100000))


def _named(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The files of an archive with their names, surrogate-escaped where they aren't UTF-8.

    Old programs wrote names in their system's code page without saying which, and zipfile assumes the first PCs' one.
    Others write UTF-8 without saying so: then all names are UTF-8. A few names in another code page may happen to be
    valid UTF-8.
    """
    files = archive.infolist()
    unsaid = {
        info: info.filename.encode("cp437")
        for info in files
        if not info.flag_bits & 0x800 and info.filename == info.orig_filename.partition("\0")[0]
    }
    try:
        code = "utf-8"
        b"/".join(unsaid.values()).decode(code)
    except UnicodeDecodeError:
        code = "ascii"
    for info in files:
        yield unsaid[info].decode(code, "surrogateescape") if info in unsaid else info.filename, info


@functools.lru_cache(maxsize=4)
def _in_tar(path: str, changed: int) -> list[Member]:
    """The files in a tar, cached, because listing decompresses the whole archive.

    changed: time of the archive. It has no checksums of its files, whose own times may be all the same.
    """
    with tarfile.open(path) as archive:
        found = [
            Member(info.name, info.size, changed, info.isreg() and not info.issparse(), info.offset_data)
            for info in archive
            if not info.isdir()
        ]
        # tarfile accepts an archive truncated between two files or in a header.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is truncated")
    return found


class _Zip:
    def __init__(self, path: str):
        self._archive = zipfile.ZipFile(path)
        self._files = {name_of(os.fsdecode(os.fsencode(name))): info for name, info in _named(self._archive)}

    def read(self, member: str, count: int) -> bytes:
        with self._archive.open(self._files[name_of(member)]) as file:
            return file.read(count)


class _Tar:
    def __init__(self, path: str):
        self._files = {name_of(member.path): member for member in _in_tar(path, os.stat(path).st_mtime_ns)}
        self._file = tarfile.open(path).fileobj  # noqa: SIM115 - as long as the process
        self._lock = threading.Lock()

    def read(self, member: str, count: int) -> bytes:
        found = self._files[name_of(member)]
        with self._lock:
            self._file.seek(found.place)
            return self._file.read(found.size if count < 0 else min(count, found.size))


@functools.lru_cache(maxsize=4)
def _open(path: str, plain: str, changed: int) -> _Zip | _Tar:
    """An open archive with its index, kept for the next file; a new `changed` reopens an archive that was replaced."""
    try:
        return _Zip(path) if path.lower().endswith(".zip") else _Tar(plain)
    except _DAMAGED as error:
        raise OSError(0, first_line(error)) from None
