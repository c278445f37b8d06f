"""Files by local path or by any URI that pyarrow's filesystems open (``s3://``, ``gs://``).

Small records are written whole or not at all: to a neighbouring name first, then moved into place.
"""

from __future__ import annotations

import fnmatch
import json
import os
import posixpath
import urllib.parse
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raygan.errors import RayganError, first_line


def resolve(address: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and path of a local path or URI. Raises RayganError if it can't be opened."""
    try:
        if "://" in address:
            filesystem, path = pafs.FileSystem.from_uri(address)
            return filesystem, str(path)
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(address))
    except (pa.ArrowInvalid, OSError) as error:
        raise RayganError(f"cannot open {public(address)}: {first_line(error)}") from None


def public(address: str) -> str:
    """The address without a user name and password."""
    parts = urllib.parse.urlsplit(address)
    return address.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else address


def is_file(address: str) -> bool:
    """Whether there is such a file. Raises RayganError if that can't be found out."""
    filesystem, path = resolve(address)
    try:
        return bool(filesystem.get_file_info(path).type == pafs.FileType.File)
    except OSError as error:
        raise RayganError(f"cannot read {public(address)}: {first_line(error)}") from None


def join(address: str, *parts: str) -> str:
    """The address of something under `address`."""
    return posixpath.join(address, *parts)


def read_json(address: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file. Raises RayganError if it is damaged or can't be read."""
    text = read_text(address)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        raise RayganError(f"{address} is damaged: it is not JSON") from None
    if not isinstance(values, dict):
        raise RayganError(f"{address} is damaged: it is not a JSON object")
    return values


def write_json(address: str, values: dict[str, Any]) -> None:
    """Write a JSON object. Raises RayganError if the place can't be written."""
    write_bytes(address, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(address: str, content: bytes | pa.Buffer) -> None:
    """Write a file, making its folder. Raises RayganError if the place can't be written."""
    filesystem, path = resolve(address)
    try:
        filesystem.create_dir(posixpath.dirname(path), recursive=True)
        with filesystem.open_output_stream(path + ".part") as file:
            file.write(content)
        filesystem.move(path + ".part", path)
    except OSError as error:
        raise RayganError(f"cannot write {public(address)}: {error.strerror or error}") from None


def check_writable(address: str) -> None:
    """Make a folder and try it with a file. Raises RayganError if it can't be written."""
    probe = join(address, ".writable")
    write_bytes(probe, b"")
    filesystem, path = resolve(probe)
    filesystem.delete_file(path)


def read_text(address: str) -> str | None:
    """A text file's content, or None where there is no such file. Raises RayganError if it can't be read."""
    if not is_file(address):
        return None
    try:
        return read_bytes(address).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RayganError(f"cannot read {public(address)}: {first_line(error)}") from None


def list_files(address: str, pattern: str) -> list[str]:
    """Addresses of the files directly under `address` whose names match a pattern such as ``a-*.png``, sorted."""
    filesystem, path = resolve(address)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(join(address, info.base_name) for info in found if fnmatch.fnmatch(info.base_name, pattern))


def delete_folders(address: str, pattern: str) -> None:
    """Delete the folders under `address` whose paths below it match a pattern such as ``a.*/b_*``."""
    filesystem, root = resolve(address)
    head, _, tail = pattern.partition("/")
    for info in filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
        if info.type != pafs.FileType.Directory or not fnmatch.fnmatch(info.base_name, head):
            continue
        if tail:
            delete_folders(join(address, info.base_name), tail)
        else:
            filesystem.delete_dir(info.path)


def read_bytes(address: str) -> bytes:
    """A file's content. Raises FileNotFoundError."""
    filesystem, path = resolve(address)
    with filesystem.open_input_file(path) as file:
        content: bytes = file.read()
    return content
