"""Batches: shards as a stream of global batches, the same for any number of workers.

The mental model:

1. `EpochOrder` shuffles the shards of an epoch, then the photos within each group of consecutive shards, from the
   run's seed and the epoch and group numbers alone. A rank holds the order of the groups in use, not of all photos.
2. Global batch k is a slice of that order, and each rank takes its rows of the slice. Where an epoch has several
   groups, a batch's photos are sorted by shard first, so a rank needs only some of a group's shards, the fewer the
   more ranks there are.
3. While a group is in use, the next one is read.

So the reals of batch k depend only on the seed and k, and a run resumed at batch k, on any number of workers, sees
what it would have seen without the interruption. A stream split among workers on demand can't promise that. The last
batch of an epoch is dropped if it would be short; the next epoch's order drops other photos.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from raygan.data.photos import Photos
from raygan.data.shards import Stored
from raygan.models.distributed import Share

Batch = tuple[torch.Tensor, torch.Tensor]

#: Number of an epoch, and of a group of shards in it.
Group = tuple[int, int]


class EpochOrder:
    """The order of all photos in one epoch.

    Args:
        rows: number of photos of each shard.
        seed: of the run.
        epoch: its number.
        mixed: shards of a group.
    """

    def __init__(self, rows: np.ndarray, seed: int, epoch: int, mixed: int):
        self._rows, self._seeds, self._mixed = rows, [seed, epoch], mixed
        self._shards = np.random.default_rng(self._seeds).permutation(len(rows))
        lasts = np.minimum(np.arange(mixed, len(rows) + mixed, mixed), len(rows)) - 1
        #: Photos before the end of each group.
        self.ends = np.cumsum(rows[self._shards])[lasts]
        #: A group's photos in order: place of the shard among the epoch's, shard, and row, int64 (n, 3).
        self.group = functools.lru_cache(maxsize=4)(self._group)

    def _group(self, number: int) -> np.ndarray:
        first = number * self._mixed
        shards = self._shards[first : first + self._mixed]
        counts = self._rows[shards]
        ends = np.cumsum(counts)
        photos = np.stack(
            [
                np.repeat(np.arange(first, first + len(shards)), counts),
                np.repeat(shards, counts),
                np.arange(counts.sum()) - np.repeat(ends - counts, counts),
            ],
            1,
        )
        if number:
            random = np.random.default_rng([*self._seeds, number])
        else:
            random = np.random.default_rng(self._seeds)
            random.permutation(len(self._rows))  # the draws go on from those of the shards
        shuffled: np.ndarray = random.permutation(photos)
        return shuffled

    def slice(self, start: int, stop: int) -> tuple[list[int], np.ndarray]:
        """Photos `start` to `stop` of the epoch: the groups they are in, and their shards and rows, (n, 2)."""
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right").tolist()
        numbers = list(range(first, last + 1))
        found = []
        for number in numbers:
            before = int(self.ends[number - 1]) if number else 0
            found.append(self.group(number)[max(0, start - before) : stop - before])
        photos = np.concatenate(found)
        if len(self.ends) > 1:
            photos = photos[np.argsort(photos[:, 0], kind="stable")]
        return numbers, photos[:, 1:]


class BatchStream:
    """An endless stream of global batches, of which this rank gets its rows.

    Args:
        photos: by shard.
        batch_size: images per global batch.
        seed: of the order.
        share: this rank's share of a batch.
    """

    def __init__(self, photos: Photos, batch_size: int, seed: int, share: Share):
        self.photos, self.batch_size, self.seed, self.share = photos, batch_size, seed, share
        self.batches_per_epoch = len(photos) // batch_size
        self._rows = np.array(photos.rows, np.int64)
        self._order = functools.lru_cache(maxsize=2)(self._new_order)
        self._reader = ThreadPoolExecutor(1, "shards")
        self._open: dict[Group, Future[dict[int, Stored]]] = {}

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
        """This rank's rows of global batch `batch`: pixels, uint8 (n, 3, S, S), and class indices, int64 (n,).

        The pixels' channels are last in memory: that is how shards store them, and a GPU turns them faster.
        """
        groups, photos = self._photos(batch)
        blocks = self._blocks(groups)
        # Arrays from the object store are read-only; this copies only the rows of this batch.
        pixels = np.stack([blocks[shard][0][row] for shard, row in photos.tolist()])
        classes = np.array([blocks[shard][1][row] for shard, row in photos.tolist()], np.int64)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(classes)

    def _new_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self._rows, self.seed, epoch, self.photos.mixed)

    def _photos(self, batch: int) -> tuple[list[Group], np.ndarray]:
        """The groups of a batch, and shards and rows of this rank's photos in it."""
        epoch, position = divmod(batch, self.batches_per_epoch)
        start = position * self.batch_size
        groups, photos = self._order(epoch).slice(start, start + self.batch_size)
        return [(epoch, number) for number in groups], photos[self.share.rows(self.batch_size)]

    def _blocks(self, groups: Sequence[Group]) -> dict[int, Stored]:
        """The blocks of these groups that this rank needs; drops others, and starts to read the next group."""
        wanted = list(groups)
        if len(groups) != 2:  # on the way from one group to the next, both are in memory
            epoch, number = groups[-1]
            wanted.append((epoch, number + 1) if number + 1 < len(self._order(epoch).ends) else (epoch + 1, 0))
        self._open = {group: self._open.get(group) or self._reader.submit(self._read, group) for group in wanted}
        return functools.reduce(dict.__or__, (self._open[group].result() for group in groups))

    def _read(self, group: Group) -> dict[int, Stored]:
        """This rank's shards of a group."""
        epoch, number = group
        order = self._order(epoch)
        first = int(order.ends[number - 1]) if number else 0
        last = min(int(order.ends[number]), self.batches_per_epoch * self.batch_size)
        before = epoch * self.batches_per_epoch
        own: set[int] = set()
        for batch in range(first // self.batch_size, -(-last // self.batch_size)):
            own.update(self._photos(before + batch)[1][:, 0].tolist())
        needed = sorted(own.intersection(order.group(number)[:, 1].tolist()))  # a batch may be of two groups
        return dict(zip(needed, self.photos.source.fetch(needed), strict=True))
