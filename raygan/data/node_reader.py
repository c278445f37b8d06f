"""The actor that reads shards on a node; in a module of its own, since torch would cost it seconds and memory."""

from __future__ import annotations

from raygan.data.shards import Manifest, ShardFile, Stored, read_stored
from raygan.data.stamps import Stamps


class NodeReader:
    """Reads shards into the node's object store, a few at a time."""

    def read(
        self, address: str, manifest: Manifest, shard: ShardFile, label: str | None, stamps: Stamps
    ) -> tuple[Stored, int]:
        """A shard, and the number of its photos."""
        block = read_stored(address, manifest, shard, label, stamps)
        return block, len(block[1])
