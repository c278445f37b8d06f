"""Photos by shard: in Ray's object store, in this process, or still in storage.

`open_photos` only lists the shards of a data set. `Photos.block`, `parts` and `pixels` then read from storage, a shard
at a time. `raygan.data.reader.load_photos` gives photos that all workers share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import ray

from raygan import pictures
from raygan.data.shards import DataSet, Manifest, ShardFile, Split, Stored, check_rows, read_stored
from raygan.data.stamps import Stamps, stamps_of
from raygan.errors import RayganError
from raygan.runtime import cluster, storage

#: Shards shuffled together, unless memory is bounded further: enough to mix small data sets completely.
SHARDS_MIXED = 64

#: Shards at most from which photos are taken where some must stand for all: reading more would take minutes.
_SHARDS_SPREAD = 256

#: Shards that are read at a time on each node.
READ_AT_ONCE = 4

#: Pixels, uint8 (n, 3, S, S), and class indices, int64 (n,). The pixels' channels may be last in memory.
Block = tuple[np.ndarray, np.ndarray]


class Source(Protocol):
    """Where blocks come from, by number."""

    def read(self, number: int) -> Stored:
        """One block. Raises RayganError if it is unreadable."""
        ...

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        """Several blocks, mapped from the node's object store. Raises RayganError if one is unreadable."""
        ...


@dataclass(frozen=True)
class Photos:
    """Photos by shard.

    Attributes:
        rows: number of photos of each shard.
        source: of their blocks.
        mixed: shards that a `BatchStream` shuffles together.
    """

    rows: tuple[int, ...]
    source: Source
    mixed: int = SHARDS_MIXED

    def __len__(self) -> int:
        return sum(self.rows)

    def spread(self, count: int, shards: int = _SHARDS_SPREAD) -> np.ndarray:
        """Shard and row of up to `count` photos, evenly spread: int64 (n, 2), in order.

        shards: maximum number of shards to take them from, evenly spread, too.
        """
        chosen = pictures.spread(shards, len(self.rows)) if self.rows else np.empty(0, np.int64)
        rows = np.array(self.rows, np.int64)[chosen]
        places = _places(rows, pictures.spread(count, int(rows.sum())))
        return np.stack([chosen[places[:, 0]], places[:, 1]], 1)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Shard and row of photos by their numbers among all, in the order of the shards: int64 (n, 2)."""
        return _places(np.array(self.rows, np.int64), numbers)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The numbers among all photos, int64 (n,), of photos given by shard and row, (n, 2)."""
        starts = np.cumsum([0, *self.rows])
        found: np.ndarray = starts[places[:, 0]] + places[:, 1]
        return found

    def only(self, numbers: np.ndarray) -> Photos:
        """The photos with these numbers, in the order of their shards, each of which is read when it is needed."""
        places = self.places(np.sort(numbers))
        shards, starts = np.unique(places[:, 0], return_index=True)
        rows = tuple(np.split(places[:, 1], starts[1:])) if len(shards) else ()
        return Photos(tuple(map(len, rows)), Chosen(self.source, tuple(shards.tolist()), rows), self.mixed)

    def parts(self, places: np.ndarray) -> Iterator[Block]:
        """Copies of photos given by shard and row, (n, 2), one block for consecutive photos of the same shard."""
        for part in np.split(places, np.flatnonzero(np.diff(places[:, 0])) + 1) if len(places) else []:
            pixels, classes = self.block(int(part[0, 0]))
            yield pixels[part[:, 1]].copy(), classes[part[:, 1]]

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """A copy of the pixels of photos given by shard and row, (n, 2): uint8 (n, 3, S, S)."""
        order = np.argsort(places[:, 0], kind="stable")  # to read each shard once
        found = np.concatenate([pixels for pixels, _ in self.parts(places[order])])
        return found[np.argsort(order)]

    def classes(self, places: np.ndarray) -> np.ndarray:
        """The class indices of photos given by shard and row, (n, 2): int64 (n,)."""
        order = np.argsort(places[:, 0], kind="stable")
        found: np.ndarray = np.concatenate([classes for _, classes in self.parts(places[order])])[np.argsort(order)]
        return found

    def block(self, number: int) -> Block:
        """Pixels (n, 3, S, S) and class indices (n,) of one shard; read-only.

        Raises:
            RayganError: the shard is unreadable.
        """
        pixels, classes = self.source.read(number)
        return pixels.transpose(0, 3, 1, 2), classes


@dataclass(frozen=True)
class InMemory:
    """Blocks in this process."""

    blocks: tuple[Stored, ...]

    def read(self, number: int) -> Stored:
        return self.blocks[number]

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        return [self.blocks[number] for number in numbers]


@dataclass(frozen=True)
class Joined:
    """The blocks of several sources, one after the other; `starts` has the number of each source's first block."""

    sources: tuple[Source, ...]
    starts: tuple[int, ...]

    def read(self, number: int) -> Stored:
        return self.fetch([number])[0]

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        found: dict[int, Stored] = {}
        for source, start, end in zip(self.sources, self.starts, [*self.starts[1:], None], strict=True):
            own = [number for number in numbers if number >= start and (end is None or number < end)]
            if own:
                found |= zip(own, source.fetch([number - start for number in own]), strict=True)
        return [found[number] for number in numbers]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some rows of some blocks of another source."""

    source: Source
    shards: tuple[int, ...]
    rows: tuple[np.ndarray, ...]

    def read(self, number: int) -> Stored:
        pixels, classes = self.source.read(self.shards[number])
        return pixels[self.rows[number]], classes[self.rows[number]]

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        blocks = self.source.fetch([self.shards[number] for number in numbers])
        rows = [self.rows[number] for number in numbers]
        return [(pixels[own], classes[own]) for (pixels, classes), own in zip(blocks, rows, strict=True)]


@dataclass(frozen=True)
class InStore:
    """Blocks that are in the object store, such as generated images."""

    blocks: tuple[ray.ObjectRef, ...]

    def read(self, number: int) -> Stored:
        found: Stored = cluster.fetch(self.blocks[number])
        return found

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        found: list[Stored] = cluster.fetch([self.blocks[number] for number in numbers])
        return found


@dataclass(frozen=True, eq=False)
class Shards:
    """A split's shards in storage.

    Attributes:
        address: of the data set.
        manifest: of the data set, without its shards.
        split: train or validation.
        label: read only this label's photos; None for all.
        files: names of the shards.
        counts: photos of each shard by class, int32 (shards, classes).
        stamps: of each file.
    """

    address: str
    manifest: Manifest
    split: Split
    label: str | None
    files: tuple[str, ...]
    counts: np.ndarray
    stamps: tuple[Stamps, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of photos of each shard."""
        if self.label is None:
            return tuple(self.counts.sum(axis=1).tolist())
        return tuple(self.counts[:, self.manifest.classes.index(self.label)].tolist())

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each shard's pixels in the object store."""
        return np.array(self.rows, np.int64) * 3 * self.manifest.image_size**2

    def of(self, number: int) -> tuple[str, Manifest, ShardFile, str | None, Stamps]:
        """The arguments of `read_shard` for one shard."""
        rows = dict(zip(self.manifest.classes, self.counts[number].tolist(), strict=True))
        shard = ShardFile(file=self.files[number], split=self.split, rows=rows)
        return self.address, self.manifest, shard, self.label, self.stamps[number]

    def read(self, number: int) -> Stored:
        return read_stored(*self.of(number))

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        return [self.read(number) for number in numbers]


def _places(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Block and row of photos by number, int64 (n, 2), from the number of rows of each block."""
    ends = np.cumsum(rows)
    among = np.searchsorted(ends, numbers, side="right")
    return np.stack([among, numbers - (ends - rows)[among]], 1)


def open_photos(data: DataSet, split: Split, label: str | None) -> Photos:
    """A split's photos in storage. Raises RayganError for a missing shard."""
    shards = list_shards(data, split, label)
    return Photos(shards.rows, shards)


def list_shards(data: DataSet, split: Split, label: str | None) -> Shards:
    """A split's shards with the label.

    Raises:
        RayganError: a shard is missing, or one of the first `SHARDS_MIXED`, whose labels are looked at, is not what the
            manifest says; the others are checked when they are read.
    """
    found = data.shards(split, label)
    files = storage.entries(data.address) if found else {}
    missing = [shard.file for shard in found if shard.file not in files]
    if missing:
        raise RayganError(
            f"{data.address} lacks {len(missing)} of its {len(found)} {split} shards, the first of them {missing[0]}: "
            f"prepare the shards again"
        )
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        list(pool.map(lambda shard: check_rows(data.address, shard), found[:SHARDS_MIXED]))
    return Shards(
        address=data.address,
        manifest=data.manifest.without_shards(),
        split=split,
        label=label,
        files=tuple(shard.file for shard in found),
        counts=data.counts(split, label),
        stamps=tuple(stamps_of(files, shard.file) for shard in found),
    )
