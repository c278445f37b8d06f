"""Batches: shards as a stream of global batches, the same for any number of workers.

The mental model:

1. A Ray task anywhere in the cluster reads each shard once, into Ray's object store. All workers of all runs on a node
   then map the same memory.
2. `epoch_order` shuffles the photos of an epoch from the run's seed and the epoch number alone.
3. Global batch k is a slice of that order, and each rank takes its rows of the slice.

So the reals of batch k depend only on the seed and k, and a run resumed at batch k, on any number of workers, sees
what it would have seen without the interruption. A stream split among workers on demand can't promise that. The last
batch of an epoch is dropped if it would be short; the next epoch's order drops other photos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
import torch

from raygan import pictures
from raygan.data.shards import DataSet, Manifest, ShardFile, Split, read_shard
from raygan.models.distributed import Share
from raygan.runtime import cluster

#: Shards shuffled together: enough to mix small data sets completely, few enough to stay in memory.
SHARDS_MIXED = 64

#: Pixels and class indices of a shard, and of a rank's rows of a batch.
Block = tuple[np.ndarray, np.ndarray]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Photos:
    """Photos in the object store, by shard.

    Attributes:
        rows: number of photos of each shard.
        blocks: for each shard, a reference to its pixels, uint8 (n, 3, S, S), and class indices, int64 (n,).
    """

    rows: tuple[int, ...]
    blocks: tuple[ray.ObjectRef, ...]

    def __len__(self) -> int:
        return sum(self.rows)

    def spread(self, count: int) -> np.ndarray:
        """Shard and row of up to `count` photos, evenly spread over all of them: int64 (n, 2), in order."""
        numbers = pictures.spread(count, len(self))
        ends = np.cumsum(self.rows)
        shards = np.searchsorted(ends, numbers, side="right")
        return np.stack([shards, numbers - (ends - self.rows)[shards]], 1)

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """A copy of the pixels of photos given by shard and row, (n, 2): uint8 (n, 3, S, S)."""
        blocks = {int(shard): self.block(int(shard))[0] for shard in np.unique(places[:, 0])}
        return np.stack([blocks[int(shard)][row] for shard, row in places])

    def classes(self, places: np.ndarray) -> np.ndarray:
        """The class indices of photos given by shard and row, (n, 2): int64 (n,)."""
        return np.array([self.block(int(shard))[1][row] for shard, row in places], np.int64)

    def block(self, number: int) -> Block:
        """Pixels (n, 3, S, S) and class indices (n,) of one shard, mapped, not copied.

        Raises:
            RayganError: the shard is unreadable or its block was lost.
        """
        pixels, classes = cluster.fetch(self.blocks[number])
        return pixels, classes


def load_photos(data: DataSet, split: Split, label: str | None) -> Photos:
    """Read a split's shards into the object store, with a progress bar. Raises RayganError for an unreadable shard."""
    read = ray.remote(_read).options(num_returns=2)
    parts = [read.remote(data.address, data.manifest, shard, label) for shard in data.shards(split, label)]
    blocks, counts = [block for block, _ in parts], [count for _, count in parts]
    cluster.wait_for(counts, f"reading {split} shards", unit="shard")
    # Wait for the counts: fetching the blocks would copy them to this node.
    return Photos(tuple(cluster.fetch(counts)), tuple(blocks))


def _read(address: str, manifest: Manifest, shard: ShardFile, label: str | None) -> tuple[Block, int]:
    block = read_shard(address, manifest, shard, label)
    return block, len(block[1])


def epoch_order(rows: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """The order of all photos in one epoch, by shard and row: int64 (sum(rows), 2).

    Shuffles the shards, then the photos within each group of `SHARDS_MIXED` consecutive shards.
    """
    random = np.random.default_rng([seed, epoch])
    groups = []
    shards = random.permutation(len(rows))
    for start in range(0, len(shards), SHARDS_MIXED):
        group = np.concatenate(
            [
                np.stack([np.full(rows[shard], shard), np.arange(rows[shard])], 1)
                for shard in shards[start : start + SHARDS_MIXED]
            ]
        )
        groups.append(random.permutation(group))
    return np.concatenate(groups)


class BatchStream:
    """An endless stream of global batches, of which this rank gets its rows.

    Args:
        rows: number of photos of each shard.
        read: reads a shard by its number, such as `Photos.block`.
        batch_size: images per global batch.
        seed: of the order.
        share: this rank's share of a batch.
    """

    def __init__(self, rows: Sequence[int], read: Callable[[int], Block], batch_size: int, seed: int, share: Share):
        self.rows, self.read, self.batch_size, self.seed, self.share = rows, read, batch_size, seed, share
        self.batches_per_epoch = sum(rows) // batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def starting_at(self, batch: int) -> Iterator[Batch]:
        """Batches `batch`, `batch` + 1, and so on, each fetched while the one before is in use."""
        with ThreadPoolExecutor(1) as fetcher:
            following = fetcher.submit(self.fetch, batch)
            while True:
                current = following.result()
                batch += 1
                following = fetcher.submit(self.fetch, batch)
                yield current

    def fetch(self, batch: int) -> Batch:
        """This rank's rows of global batch `batch`: pixels, uint8 (n, 3, S, S), and class indices, int64 (n,)."""
        epoch, position = divmod(batch, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.rows, self.seed, epoch)
        start = position * self.batch_size
        photos = self._order[1][start : start + self.batch_size][self.share.rows(self.batch_size)]
        blocks = {int(shard): self.read(int(shard)) for shard in np.unique(photos[:, 0])}
        # Arrays from the object store are read-only; stacking copies only the rows of this batch.
        pixels = np.stack([blocks[int(shard)][0][row] for shard, row in photos])
        classes = np.array([blocks[int(shard)][1][row] for shard, row in photos], np.int64)
        return torch.from_numpy(pixels), torch.from_numpy(classes)
