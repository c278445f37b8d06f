"""Comparing photos with each other: duplicates and near-duplicates.

Decisions take a few bytes per photo (hashes, sizes) and no pixels, so one process can judge a data set of millions
(`Verdicts`). Everything here is a pure function of content and paths; the order of tasks doesn't matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import pyarrow as pa

from raygan.data.shards import Split
from raygan.data.split import split

#: Hashes looked up at a time; bounds the memory of the answer.
_QUERIES = 20_000


class Verdicts:
    """The verdicts on all photos so far, by the photos' indices in the records.

    Attributes:
        records: see `raygan.data.chunks`.
        alive: bool (n,), whether no filter has rejected the photo so far.
    """

    def __init__(self, records: pa.Table):
        self.records = records
        self.paths = records["path"].to_pylist()
        self.labels = records["label"].to_pylist()
        self.hashes = records["hash"].to_pylist()
        self.reasons: list[str | None] = records["reason"].to_pylist()
        self.scores = records["score"].to_pylist()
        self.details = records["detail"].to_pylist()
        self.partners: list[int | None] = [None] * records.num_rows
        areas = records["width"].to_numpy().astype(np.int64) * records["height"].to_numpy()
        self.ranks = preference(self.paths, areas)
        self.alive = np.array([h != "" for h in self.hashes]) & np.array([r is None for r in self.reasons])

    def reject(self, index: int, reason: str, score: float, same_as: int | None = None) -> None:
        """Reject a photo, possibly because of another one."""
        self.reasons[index], self.scores[index], self.alive[index] = reason, score, False
        if same_as is not None:
            self.partners[index] = same_as
            differs = self.labels[index] != self.labels[same_as]
            self.details[index] = f"like {self.paths[same_as]}" + (
                f", which is labelled {self.labels[same_as]}" if differs else ""
            )

    def reject_duplicates(self) -> None:
        """Reject photos with the same pixels as another."""
        chosen = np.flatnonzero(self.alive)
        same = duplicates([self.hashes[i] for i in chosen], self.ranks[chosen])
        for index, other in zip(chosen[same >= 0], chosen[same[same >= 0]], strict=True):
            self.reject(int(index), "duplicate", 0.0, int(other))

    def close_pairs(self, distance: int, *, all_pairs: bool = True) -> np.ndarray:
        """Pairs of near-duplicates that are alive: all, from `close_pairs`, or few, from `close_links`."""
        chosen = np.flatnonzero(self.alive)
        phashes = [self.records["phash"][int(i)].as_py() for i in chosen]
        find = close_pairs if all_pairs else close_links
        pairs = find(np.frombuffer(b"".join(phashes), np.uint8).reshape(-1, 8), distance)
        pairs[:, :2] = chosen[pairs[:, :2]]
        return pairs

    def reject_near_duplicates(self, pairs: np.ndarray) -> np.ndarray:
        """Reject near-duplicates. Returns the pairs with both photos still kept: none."""
        repeats, bits = near_duplicates(pairs, self.ranks)
        for index in np.flatnonzero(repeats >= 0):
            self.reject(int(index), "near_duplicate", float(bits[index]), int(repeats[index]))
        return pairs[:0]

    def alive_by_label(self) -> dict[str, np.ndarray]:
        """Indices of each label's photos that are alive."""
        labels = np.array(self.labels, dtype=object)
        return {label: np.flatnonzero(self.alive & (labels == label)) for label in sorted(set(self.labels))}

    def reject_outliers(self, indices: np.ndarray, scores: np.ndarray, threshold: float) -> int:
        """Reject the photos that score above the threshold. Returns their number."""
        far = np.flatnonzero(scores > threshold)
        for place in far:
            self.reject(int(indices[place]), "outlier", float(scores[place]))
            self.details[int(indices[place])] = f"threshold {threshold:.4f}"
        return len(far)

    def table(self, pairs: np.ndarray, validation: float) -> pa.Table:
        """The records with verdicts.

        Args:
            pairs: near-duplicates (columns 0 and 1) that are alive and must share a split.
            validation: share of photos to hold out, 0 to 1.

        Returns:
            The records with final reasons, scores and details, and two more columns: `split`, null for rejected
            photos, and `partner`, the index of the kept photo that a duplicate or near-duplicate repeats.
        """
        chosen = np.flatnonzero(self.alive)
        place = np.full(len(self.alive), -1)
        place[chosen] = np.arange(len(chosen))
        within = place[pairs[:, :2]]
        splits: list[Split | None] = [None] * len(self.alive)
        for index, where in zip(chosen, split([self.hashes[i] for i in chosen], within, validation), strict=True):
            splits[index] = where
        table = self.records
        for name, values in (("reason", self.reasons), ("score", self.scores), ("detail", self.details)):
            table = table.set_column(
                table.schema.get_field_index(name),
                table.schema.field(name),
                pa.array(values, table.schema.field(name).type),
            )
        return table.append_column("split", pa.array(splits, pa.string())).append_column(
            "partner", pa.array(self.partners, pa.int64())
        )


def preference(paths: Sequence[str], areas: np.ndarray) -> np.ndarray:
    """Rank of each photo, 0 for the most preferred: by more pixels, then shorter path, then path.

    Shorter paths win because copies have longer names ("photo copy.jpg").
    """
    lengths = np.array([len(path) for path in paths])
    order = np.lexsort((np.array(paths, dtype=object), lengths, -areas))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def duplicates(hashes: Sequence[str], ranks: np.ndarray) -> np.ndarray:
    """For each photo, the index of the photo it is an exact copy of, or -1: int64 (n,)."""
    best: dict[str, int] = {}
    for index in np.argsort(ranks):
        best.setdefault(hashes[index], int(index))
    kept = np.array([best[value] for value in hashes], dtype=np.int64)
    return np.where(kept == np.arange(len(kept)), -1, kept)


def close_pairs(phashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of photos whose perceptual hashes differ in few bits.

    An index over four 16-bit bands of the hash finds all of them: hashes that differ in d bits differ in at most
    d // 4 bits in at least one band. A photo is compared only with the few that share a band with it, so the cost
    grows nearly linearly up to millions of photos; comparing all pairs would grow quadratically.

    Args:
        phashes: uint8 (n, 8).
        distance: most differing bits, 0 to 15.

    Returns:
        int64 (pairs, 3): index, larger index, differing bits.
    """
    if len(phashes) < 2:
        return np.empty((0, 3), np.int64)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = distance // 4
    index.add(phashes)
    found = []
    for start in range(0, len(phashes), _QUERIES):
        limits, distances, neighbors = index.range_search(phashes[start : start + _QUERIES], distance + 1)
        ones = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)).astype(np.int64))
        pairs = np.stack([ones, neighbors, distances.astype(np.int64)], axis=1)
        found.append(pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 2] <= distance)])
    joined = np.concatenate(found)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def close_links(phashes: np.ndarray, distance: int) -> np.ndarray:
    """Fewer pairs that connect the same photos as `close_pairs`: equal hashes form a chain.

    A photo that occurs a hundred times would give 4,950 pairs.
    """
    hashes, first, which = np.unique(phashes, axis=0, return_index=True, return_inverse=True)
    links = close_pairs(np.ascontiguousarray(hashes), distance)
    links[:, :2] = first[links[:, :2]]
    order = np.argsort(which, kind="stable")
    same = np.flatnonzero(which[order][1:] == which[order][:-1])
    chains = np.stack([order[same], order[same + 1], np.zeros_like(same)], axis=1)
    return np.concatenate([links, chains.astype(np.int64)])


def near_duplicates(pairs: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each photo, the index of the kept photo it nearly repeats, or -1, and the bits in which they differ.

    In order of preference, a photo is kept unless it is close to one already kept. So no two kept photos are a pair,
    and a chain of small steps doesn't reject photos that look different.
    """
    count = len(ranks)
    repeats, bits = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    neighbors: dict[int, list[tuple[int, int]]] = {}
    for one, other, distance in pairs.tolist():
        neighbors.setdefault(one, []).append((other, distance))
        neighbors.setdefault(other, []).append((one, distance))
    for index in sorted(neighbors, key=lambda number: int(ranks[number])):
        if repeats[index] >= 0:
            continue
        for other, distance in neighbors[index]:
            if ranks[other] > ranks[index] and repeats[other] < 0:
                repeats[other], bits[other] = index, distance
    return repeats, bits
