"""Whether shards are still those that a job found when it began: none may be replaced while it reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pyarrow.fs as pafs

from raygan.errors import RayganError
from raygan.runtime.storage import join, read_json, resolve, stamp_of

#: The file of a data set that is written last.
MANIFEST = "manifest.json"

#: What `raygan.runtime.storage.stamp_of` said of a shard and of the manifest when the job began.
Stamps = tuple[str, str]


def stamps_of(files: Mapping[str, pafs.FileInfo], shard: str) -> Stamps:
    """The stamps of a shard among the files of a data set."""
    return stamp_of(files[shard]), stamp_of(files[MANIFEST]) if MANIFEST in files else ""


def is_same(address: str, file: str, fingerprint: str, stamps: Stamps) -> bool:
    """Whether a shard, seen from this node, is the one that the job found.

    A node may have a copy of the data set on its own disk, whose files have other times. Then the manifests tell of the
    same shards, and theirs have the same sizes.

    Args:
        address: of the data set.
        file: the shard's name.
        fingerprint: in the manifest that the job read.
        stamps: of the shard.
    """
    filesystem, root = resolve(address)
    shard = stamp_of(filesystem.get_file_info(f"{root}/{file}"))
    if shard == stamps[0]:
        return True
    manifest = stamp_of(filesystem.get_file_info(f"{root}/{MANIFEST}"))
    if manifest == stamps[1]:
        return False
    same_size = shard.partition(" ")[0] == stamps[0].partition(" ")[0]
    return same_size and _fingerprint(address, manifest) == fingerprint


@functools.lru_cache(maxsize=16)
def _fingerprint(address: str, stamp: str) -> str | None:
    """The fingerprint in a manifest; None if it can't be read. stamp: a manifest that has changed is read again."""
    try:
        return (read_json(join(address, MANIFEST)) or {}).get("fingerprint")
    except RayganError:
        return None
