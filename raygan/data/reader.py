"""Shards in Ray's object store, each read once for all workers and runs.

`load_photos` starts a `ShardReader`, an actor beside the driver that all workers of all runs ask for shards. It has
each read by an actor on the asker's node, into the object store, where all workers of a node map the same memory, and
keeps the shards used last, within a bound.

These actors reserve no cores, so workers that reserve all of them can't block reading. A block whose only copy was
lost with a node is read from storage again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygan.data.photos import READ_AT_ONCE, SHARDS_MIXED, Photos, Shards, list_shards
from raygan.data.shards import DataSet, Manifest, ShardFile, Split, Stored, read_stored
from raygan.data.stamps import Stamps
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime import cluster

#: Share of a node's object store that photos may take before a note is printed.
_STORES_SHARE = 0.8

#: Seconds after which a shard that can't be read is tried again.
_TRY_AGAIN_S = (0.5, 3.0)


@dataclass(frozen=True, eq=False)
class SharedShards:
    """Shards that a `ShardReader` reads once for all.

    Attributes:
        shards: in storage.
        reader: the actor.
        whole: all of them fit its bound, so it keeps what it has read.
        held: reference to the shards, for the actor.
    """

    shards: Shards
    reader: ray.actor.ActorHandle
    whole: bool
    held: ray.ObjectRef

    def read(self, number: int) -> Stored:
        """One block; what doesn't fit the bound is read for this process alone."""
        return self.fetch([number])[0] if self.whole else self.shards.read(number)

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        node = ray.get_runtime_context().get_node_id()
        wanted = list(numbers)
        try:
            return self._fetch(wanted, node)
        except ray.exceptions.ObjectLostError:  # with its node
            cluster.fetch(self.reader.forget.remote(wanted))
            return self._fetch(wanted, node)

    def _fetch(self, numbers: list[int], node: str) -> list[Stored]:
        refs = cluster.fetch(self.reader.blocks.remote(numbers, node, [self.held]))
        try:
            found: list[Stored] = ray.get(refs)
        except ray.exceptions.ObjectLostError:
            raise
        except ray.exceptions.RayError as error:
            raise cluster.failure(error) from error
        return found


class ShardReader:
    """An actor that has shards read into the object store, and keeps the ones used last.

    What a worker is using stays in the store even if the reader lets go of it.
    """

    def __init__(self, most_bytes: float):
        """Start empty.

        Args:
            most_bytes: bound of what is kept.
        """
        self._most_bytes = most_bytes
        self._shards: Shards | None = None
        self._kept: dict[int, asyncio.Task[ray.ObjectRef]] = {}  # least recently used first
        self._bytes = np.empty(0, np.int64)
        self._readers: dict[str, ray.actor.ActorHandle] = {}

    async def blocks(self, numbers: list[int], node: str, held: Sequence[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """References to blocks, which a node's worker needs.

        Args:
            numbers: of the blocks.
            node: its id.
            held: a reference to the shards in storage, which may be many. Passed with every call, because Ray
                may have lost the constructor's reference when it restarts the actor.

        Raises:
            RayganError: a block is unreadable.
        """
        if self._shards is None:
            shards: Shards = await held[0]
            self._shards, self._bytes = shards, shards.sizes
        for number in numbers:
            task = self._kept.pop(number, None)
            self._kept[number] = task or asyncio.create_task(self._block(self._shards, number, node))
        self._drop(keep=set(numbers))
        tasks = [self._kept[number] for number in numbers]
        try:
            return [await asyncio.shield(task) for task in tasks]
        except RayganError:
            self.forget(numbers, only_failed=True)
            raise

    def forget(self, numbers: list[int], only_failed: bool = False) -> None:
        """Read these shards again when they are next asked for."""
        for number in numbers:
            task = self._kept.get(number)
            if task and (not only_failed or (task.done() and task.exception())):
                del self._kept[number]

    def _drop(self, keep: set[int]) -> None:
        """Drop the least recently used shards until the bound holds."""
        held = float(self._bytes[list(self._kept)].sum())
        for number in list(self._kept):
            if held <= self._most_bytes:
                break
            if number not in keep:
                held -= self._bytes[number]
                del self._kept[number]

    async def _block(self, shards: Shards, number: int, node: str) -> ray.ObjectRef:
        """Have a shard read on a node, or on this one if that is gone; retries while storage fails for a moment."""
        for wait in (*_TRY_AGAIN_S, None):
            actor = self._on(node)
            block, count = actor.read.options(num_returns=2).remote(*shards.of(number))
            try:
                await count  # fetching the block would copy it to this node
                break
            except ray.exceptions.RayError as error:
                if wait is None:
                    raise cluster.failure(error) from None
                if not isinstance(error, ray.exceptions.RayTaskError):  # the actor is gone, or has no node
                    if self._readers.get(node) is actor:
                        del self._readers[node]
                    node = ray.get_runtime_context().get_node_id()
                await asyncio.sleep(wait)
        return block

    def _on(self, node: str) -> ray.actor.ActorHandle:
        """The actor that reads on a node."""
        if node not in self._readers:
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = ray.remote(NodeReader).options(num_cpus=0, max_concurrency=READ_AT_ONCE, scheduling_strategy=place)
            self._readers[node] = actor.remote()
        return self._readers[node]


class NodeReader:
    """An actor that reads shards into its node's part of the object store, a few at a time."""

    def read(
        self, address: str, manifest: Manifest, shard: ShardFile, label: str | None, stamps: Stamps
    ) -> tuple[Stored, int]:
        """A shard, and the number of its photos."""
        block = read_stored(address, manifest, shard, label, stamps)
        return block, len(block[1])


def load_photos(data: DataSet, split: Split, label: str | None, memory: float | None = None) -> Photos:
    """A split's photos, read into the object store when they are needed, once for all workers and runs.

    Args:
        data: the shards.
        split: train or validation.
        label: only this label's photos; None for all.
        memory: what may be in the object store at a time, GB; None for two groups of `SHARDS_MIXED` shards.

    Raises:
        ConfigurationError: two shards exceed the memory.
        RayganError: a shard is missing.
    """
    mixed = shards_mixed(data, memory)
    shards = list_shards(data, split, label)
    sizes = shards.sizes
    bound = memory * 1e9 if memory is not None else 2.0 * mixed * max(sizes.tolist(), default=0)
    _say_room(min(bound, float(sizes.sum())))
    again = {"max_restarts": -1, "max_task_retries": 3}  # it has nothing that it can't read again
    actor = ray.remote(ShardReader).options(num_cpus=0, scheduling_strategy=cluster.here(), **again)
    held = ray.put(shards)
    shared = SharedShards(shards, actor.remote(bound), whole=bool(sizes.sum() <= bound), held=held)
    return Photos(shards.rows, shared, mixed)


def _say_room(needed: float) -> None:
    """Print a note if so many bytes of photos don't fit a node's object store beside what else is there."""
    room = min((node.get("object_store_memory", 0.0) for node in cluster.nodes()), default=0.0)
    if needed > _STORES_SHARE * room:
        print(
            f"note: up to {needed / 1e9:.2g} GB of photos will be in Ray's object store, which has {room / 1e9:.2g} GB "
            f"on the smallest node: the rest spills to disk, unless you give a smaller --data-memory",
            file=sys.stderr,
        )


def shards_mixed(data: DataSet, memory: float | None) -> int:
    """How many shards of a data set may be shuffled together: one group is in use while the next is read.

    Raises:
        ConfigurationError: two shards exceed the memory, in GB.
    """
    rows = [sum(shard.rows.values()) for shard in data.manifest.shards]
    size = max(rows, default=0) * 3 * data.manifest.image_size**2
    if memory is None or sum(rows) * 3 * data.manifest.image_size**2 <= memory * 1e9:
        return SHARDS_MIXED
    fitting = int(memory * 1e9 / 2 / max(size, 1))
    if fitting < 1:
        raise ConfigurationError(
            f"--data-memory: {memory:g} GB is less than two shards of {data.address}, one in use and one being read, "
            f"which take {size * 2 / 1e9:.2g} GB: give more, or prepare the photos with a smaller --shard-images"
        )
    return min(SHARDS_MIXED, fitting)
