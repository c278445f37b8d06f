"""Files at local paths and at any URI that pyarrow's filesystems open (``s3://``, ``gs://``).

A file is written as a whole or not at all: on a disk it is first written under a temporary name, then moved into place.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import posixpath
import secrets
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from raygan.addresses import absolute as absolute
from raygan.addresses import is_remote, split_query
from raygan.addresses import join as join
from raygan.addresses import name as name
from raygan.addresses import parent as parent
from raygan.addresses import public as public
from raygan.errors import RayganError, first_line, reason
from raygan.machine import cache_folder
from raygan.runtime import gcs

if TYPE_CHECKING:
    import ray.train

#: Errors of pyarrow's filesystems; those without one of the system's numbers aren't OSErrors.
FAILURES = (OSError, pa.ArrowException)

#: Pyarrow's names for its object stores.
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})


def resolve(address: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and path of a local path or URI. Raises RayganError if it can't be opened."""
    place, query = split_query(absolute(address))
    if not is_remote(place):
        return pafs.LocalFileSystem(), place
    try:
        scheme, netloc, path, _, fragment = urllib.parse.urlsplit(place.replace("?", "%3F"))
        filesystem, root = open_root(f"{scheme}://{netloc}/{query}")
    except (*FAILURES, ValueError) as error:
        raise RayganError(f"cannot open {public(address)}: {first_line(error)}") from None
    inner = urllib.parse.unquote(path.lstrip("/") + (f"#{fragment}" if fragment else "")).rstrip("/")
    return filesystem, posixpath.join(root, inner) if inner else root


@functools.lru_cache(maxsize=32)
def open_root(root: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a bucket or host, cached because opening one may take a request to a server."""
    filesystem, path = pafs.FileSystem.from_uri(root)
    if filesystem.type_name == "gcs":
        gcs.check_answers(root, path)
    return filesystem, str(path)


def for_ray(address: str) -> dict[str, Any]:
    """The arguments of a `RunConfig` that make Ray Train or Tune keep its files there.

    Given the address itself, Ray would open it once per process and in places take its query for part of the path.
    """
    filesystem, path = resolve(address)
    return {"storage_path": path, "storage_filesystem": filesystem}


def checkpoint_at(address: str) -> ray.train.Checkpoint:
    """A folder as a Ray checkpoint, which downloads a remote folder when it is read."""
    import ray.train

    filesystem, path = resolve(address)
    return ray.train.Checkpoint(path, filesystem=filesystem)


@contextmanager
def files_of(checkpoint: ray.train.Checkpoint) -> Iterator[Path]:
    """A checkpoint's folder on this machine, downloaded from remote storage while the block runs.

    Raises:
        RayganError: it can't be read.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(checkpoint.as_directory())
        except FAILURES as error:
            raise RayganError(f"cannot read the checkpoint {checkpoint.path}: {first_line(error)}") from None
        yield Path(folder)


def is_file(address: str) -> bool:
    """Whether the file exists. Raises RayganError if the storage doesn't answer."""
    filesystem, path = resolve(address)
    try:
        return bool(filesystem.get_file_info(path).type == pafs.FileType.File)
    except FAILURES as error:
        raise RayganError(f"cannot read {public(address)}: {first_line(error)}") from None


def read_json(address: str) -> dict[str, Any] | None:
    """A file's JSON object, or None if there is no file. Raises RayganError if it is damaged or can't be read."""
    text = read_text(address)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        raise RayganError(f"{public(address)} is damaged: it is not JSON") from None
    if not isinstance(values, dict):
        raise RayganError(f"{public(address)} is damaged: it is not a JSON object")
    return values


def write_json(address: str, values: dict[str, Any]) -> None:
    """Write a JSON object. Raises RayganError if the file can't be written."""
    write_bytes(address, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(address: str, content: bytes | pa.Buffer) -> None:
    """Write a file, creating its folder. Raises RayganError if the file can't be written."""
    filesystem, path = resolve(address)
    # An object appears only when it is complete and needs no folder; moving one would mean copying it.
    of_objects = filesystem.type_name in _OBJECT_STORES
    first = path if of_objects else f"{path}.{secrets.token_hex(4)}.part"  # two jobs may write the same file
    try:
        if not of_objects:
            filesystem.create_dir(posixpath.dirname(path), recursive=True)
        with filesystem.open_output_stream(first) as file:
            file.write(content)
        if first != path:
            filesystem.move(first, path)
    except FAILURES as error:
        if first != path:
            with suppress(*FAILURES):
                filesystem.delete_file(first)
        raise RayganError(f"cannot write {public(address)}: {reason(error)}") from None


def check_writable(address: str) -> None:
    """Create a folder and write a test file. Raises RayganError if it can't be written."""
    probe = join(address, ".writable")
    write_bytes(probe, b"")
    delete(probe)


def room(address: str) -> int | None:
    """Free bytes on the disk of a local folder, which need not exist; None for a URI, of which nothing is known."""
    if is_remote(address):
        return None
    place = Path(absolute(address))
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if os.path.exists(folder))).free


def bytes_in(address: str) -> int:
    """Bytes of the files directly in a folder; 0 if it doesn't exist. Raises RayganError if it can't be read."""
    return sum(info.size or 0 for info in _list(address))


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def read_text(address: str) -> str | None:
    """A text file's content, or None if there is no file. Raises RayganError if it can't be read."""
    if not is_file(address):
        return None
    try:
        return read_bytes(address).decode()
    except FileNotFoundError:  # another job has just deleted it
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RayganError(f"cannot read {public(address)}: {first_line(error)}") from None


def read_bytes(address: str) -> bytes:
    """A file's content. Raises FileNotFoundError if there is no file, RayganError if it can't be read."""
    filesystem, path = resolve(address)
    try:
        with filesystem.open_input_file(path) as file:
            content: bytes = file.read()
    except FileNotFoundError:
        raise
    except FAILURES as error:
        raise RayganError(f"cannot read {public(address)}: {first_line(error)}") from None
    return content


def list_files(address: str, pattern: str) -> list[str]:
    """The sorted addresses of the files directly under `address` whose names match a pattern such as ``a-*.png``.

    Raises RayganError if the folder can't be read.
    """
    names = (info.base_name for info in _list(address) if info.type == pafs.FileType.File)
    return sorted(join(address, name) for name in names if fnmatch.fnmatch(name, pattern))


def list_folders(address: str, pattern: str) -> list[str]:
    """The sorted addresses of the folders directly under `address` whose names match a pattern.

    Raises RayganError if the folder can't be read.
    """
    names = (info.base_name for info in _list(address) if info.type == pafs.FileType.Directory)
    return sorted(join(address, name) for name in names if fnmatch.fnmatch(name, pattern))


def entries(address: str) -> dict[str, pafs.FileInfo]:
    """The files and folders directly under an address, by name. Raises RayganError if the folder can't be read."""
    return {info.base_name: info for info in _list(address)}


def stamp_of(info: pafs.FileInfo) -> str:
    """A file's size and time: one that has changed has another stamp."""
    return f"{info.size} {info.mtime_ns}"


def delete_folders(address: str, pattern: str) -> None:
    """Delete the folders whose paths below `address` match a pattern such as ``a.*/b_*``.

    Raises RayganError if a folder can't be deleted.
    """
    head, _, tail = pattern.partition("/")
    for info in _list(address):
        if info.type != pafs.FileType.Directory or not fnmatch.fnmatch(info.base_name, head):
            continue
        if tail:
            delete_folders(join(address, info.base_name), tail)
        else:
            delete(join(address, info.base_name))


def delete(address: str) -> None:
    """Delete a file, or a folder with its contents, if it exists. Raises RayganError if it can't be deleted."""
    filesystem, path = resolve(address)
    try:
        kind = filesystem.get_file_info(path).type
        # Another job may be faster; Google's empties a folder that was never created, and then finds none.
        with suppress(FileNotFoundError):
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(path)
    except FAILURES as error:
        raise RayganError(f"cannot delete {public(address)}: {first_line(error)}") from None


def local_folder(address: str) -> str:
    """The path of a folder on this machine's disk: a local folder itself, or a cached copy of a remote one.

    The copy is made again when the files have changed. Raises RayganError if there are none or they can't be read.
    """
    if not is_remote(address):
        return address
    files = [info for info in _list(address) if info.type == pafs.FileType.File]
    if not files:
        raise RayganError(f"{public(address)} is not a folder with files")
    state = repr([address, *sorted((info.base_name, info.size, info.mtime_ns) for info in files)])
    kept = cache_folder() / "fetched" / hashlib.sha256(state.encode()).hexdigest()[:16]
    folder = kept / (name(address) or "folder")
    if not folder.is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=kept))
        try:
            for info in files:
                (scratch / info.base_name).write_bytes(read_bytes(join(address, info.base_name)))
            scratch.rename(folder)
        except FAILURES as error:
            if not folder.is_dir():  # and no other process was faster
                raise RayganError(f"cannot copy {public(address)} to {kept}: {reason(error)}") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder)


def _list(address: str) -> list[pafs.FileInfo]:
    filesystem, path = resolve(address)
    try:
        if filesystem.type_name == "gcs":
            return gcs.inside(filesystem, path)
        return list(filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)))
    except FAILURES as error:
        raise RayganError(f"cannot list {public(address)}: {first_line(error)}") from None
