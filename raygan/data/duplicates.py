"""The filters that compare photos with each other: duplicates, near-duplicates; and the split.

They decide from a few bytes for each photo (hashes, sizes), never from pixels, so a data set of millions is
judged in one process (`Verdicts`). Everything here is a pure function of content and paths, whatever the order
of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raygan.data.shards import Split

#: Hashes that are looked up at a time: bounds the memory of the answer.
_QUERIES = 20_000


class Verdicts:
    """The verdicts on all photos while they are found, by the photos' indices in the records.

    records: see `raygan.data.chunks`. alive: which photos no filter has objected to.
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
        """Reject a photo, because of another one where there is one."""
        self.reasons[index], self.scores[index], self.alive[index] = reason, score, False
        if same_as is not None:
            self.partners[index] = same_as
            differs = self.labels[index] != self.labels[same_as]
            self.details[index] = f"like {self.paths[same_as]}" + (
                f", which is labelled {self.labels[same_as]}" if differs else ""
            )

    def reject_duplicates(self) -> None:
        """Reject photos whose pixels are another's."""
        chosen = np.flatnonzero(self.alive)
        same = duplicates([self.hashes[i] for i in chosen], self.ranks[chosen])
        for index, other in zip(chosen[same >= 0], chosen[same[same >= 0]], strict=True):
            self.reject(int(index), "duplicate", 0.0, int(other))

    def close_pairs(self, distance: int, *, all_pairs: bool = True) -> np.ndarray:
        """Pairs that are alive and nearly the same, as `close_pairs` or else `close_links` of this module has them."""
        chosen = np.flatnonzero(self.alive)
        phashes = [self.records["phash"][int(i)].as_py() for i in chosen]
        find = close_pairs if all_pairs else close_links
        pairs = find(np.frombuffer(b"".join(phashes), np.uint8).reshape(-1, 8), distance)
        pairs[:, :2] = chosen[pairs[:, :2]]
        return pairs

    def reject_near_duplicates(self, pairs: np.ndarray) -> np.ndarray:
        """Reject near-duplicates; the pairs of which both are still kept: none."""
        repeats, bits = near_duplicates(pairs, self.ranks)
        for index in np.flatnonzero(repeats >= 0):
            self.reject(int(index), "near_duplicate", float(bits[index]), int(repeats[index]))
        return pairs[:0]

    def alive_by_label(self) -> dict[str, np.ndarray]:
        """Indices of the photos of each label that are alive."""
        labels = np.array(self.labels, dtype=object)
        return {label: np.flatnonzero(self.alive & (labels == label)) for label in sorted(set(self.labels))}

    def reject_outliers(self, indices: np.ndarray, scores: np.ndarray, threshold: float) -> int:
        """Reject the photos whose score is above the threshold; how many they are."""
        far = np.flatnonzero(scores > threshold)
        for place in far:
            self.reject(int(indices[place]), "outlier", float(scores[place]))
            self.details[int(indices[place])] = f"threshold {threshold:.4f}"
        return len(far)

    def table(self, pairs: np.ndarray, validation: float) -> pa.Table:
        """The records with the verdicts in them, a column `split` that is null for photos not kept, and a column
        `partner`: the index of the kept photo that a duplicate or near-duplicate repeats.

        pairs: near-duplicates (columns 0 and 1) that are alive and mustn't be parted. validation: share, 0 to 1.
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
    """Rank of each photo, 0 for the one to keep first: more pixels, then the shorter path, then by name.

    The shorter path goes first because a copy's name is the longer one ("photo copy.jpg").
    """
    lengths = np.array([len(path) for path in paths])
    order = np.lexsort((np.array(paths, dtype=object), lengths, -areas))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def duplicates(hashes: Sequence[str], ranks: np.ndarray) -> np.ndarray:
    """For each photo the index of the photo whose pixels it repeats, or -1: int64 (n,)."""
    best: dict[str, int] = {}
    for index in np.argsort(ranks):
        best.setdefault(hashes[index], int(index))
    kept = np.array([best[value] for value in hashes], dtype=np.int64)
    return np.where(kept == np.arange(len(kept)), -1, kept)


def close_pairs(phashes: np.ndarray, distance: int) -> np.ndarray:
    """Pairs of photos whose perceptual hashes differ in at most `distance` bits: int64 (pairs, 3).

    phashes: uint8 (n, 8). Columns of the answer: index, larger index, differing bits.

    An index over four 16-bit bands of the hash finds them all: hashes that differ in d bits differ in at most
    d // 4 of at least one band. The cost per photo is that of the few photos which share a band with it, so it
    grows nearly linearly to millions, where all pairs would grow with the square.
    """
    if len(phashes) < 2:
        return np.empty((0, 3), np.int64)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = distance // 4
    index.add(phashes)
    found = []
    for start in range(0, len(phashes), _QUERIES):
        limits, distances, neighbours = index.range_search(phashes[start : start + _QUERIES], distance + 1)
        ones = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)).astype(np.int64))
        pairs = np.stack([ones, neighbours, distances.astype(np.int64)], axis=1)
        found.append(pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 2] <= distance)])
    joined = np.concatenate(found)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def close_links(phashes: np.ndarray, distance: int) -> np.ndarray:
    """As few pairs as connect what `close_pairs` connects: of equal hashes each is paired with the next only.

    A photo that is there a hundred times has 4,950 pairs with itself.
    """
    hashes, first, which = np.unique(phashes, axis=0, return_index=True, return_inverse=True)
    links = close_pairs(np.ascontiguousarray(hashes), distance)
    links[:, :2] = first[links[:, :2]]
    order = np.argsort(which, kind="stable")
    same = np.flatnonzero(which[order][1:] == which[order][:-1])
    chains = np.stack([order[same], order[same + 1], np.zeros_like(same)], axis=1)
    return np.concatenate([links, chains.astype(np.int64)])


def near_duplicates(pairs: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each photo the index of the kept photo it nearly repeats, or -1, and the bits they differ in.

    Photos are taken by preference; each is kept unless it is close to one kept already. So no two kept photos
    are a pair, and a chain of small steps doesn't drag in photos that look different.
    """
    count = len(ranks)
    repeats, bits = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    neighbours: dict[int, list[tuple[int, int]]] = {}
    for one, other, distance in pairs.tolist():
        neighbours.setdefault(one, []).append((other, distance))
        neighbours.setdefault(other, []).append((one, distance))
    for index in sorted(neighbours, key=lambda number: int(ranks[number])):
        if repeats[index] >= 0:
            continue
        for other, distance in neighbours[index]:
            if ranks[other] > ranks[index] and repeats[other] < 0:
                repeats[other], bits[other] = index, distance
    return repeats, bits


def split(hashes: Sequence[str], pairs: np.ndarray, validation: float) -> list[Split]:
    """Each photo's split, from its content hash alone: files added or renamed move nobody.

    pairs: near-duplicates that are both kept (none if that filter is on): photos so connected go where the
    smallest hash among them goes. validation: share of photos, 0 to 1.
    """
    count = len(hashes)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(links, directed=False)
    leader: dict[int, str] = {}
    for index, value in enumerate(hashes):
        number = int(group[index])
        leader[number] = min(value, leader.get(number, value))
    threshold = validation * 2**32
    return ["validation" if int(leader[int(g)][:8], 16) < threshold else "train" for g in group]
