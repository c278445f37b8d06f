"""Comparing photos with each other: duplicates and near-duplicates.

Decisions take a few hundred bytes per photo (hashes, sizes, paths) in Arrow columns, no pixels and no Python objects,
so one process can judge a data set of millions (`Verdicts`). Everything here is a pure function of content and paths;
the order of tasks doesn't matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.data.arrow import whole
from raygan.data.neighbors import close_pairs, words_of
from raygan.data.split import held_out


class Verdicts:
    """The verdicts on all photos so far, by the photos' indices in the records.

    Attributes:
        records: see `raygan.data.chunks`.
        alive: bool (n,), whether no filter has rejected the photo so far.
    """

    def __init__(self, records: pa.Table):
        self.records = records.combine_chunks()
        areas = records["width"].to_numpy().astype(np.int64) * records["height"].to_numpy()
        self.ranks = preference(self._column("path"), areas)
        self._labels = _codes(self._column("label"))
        hashed = pc.not_equal(records["hash"], "").fill_null(False).to_numpy()
        self.alive = hashed & pc.is_null(records["reason"]).to_numpy()
        count = records.num_rows
        self._reasons, self._reason = [""], np.zeros(count, np.int8)  # those given here, and which of them
        self._details, self._detail = [""], np.zeros(count, np.int32)
        self._scores = np.zeros(count)
        self._partners = np.full(count, -1, np.int64)

    def _column(self, name: str) -> pa.Array:
        return whole(self.records[name])

    def reject(
        self,
        indices: np.ndarray | int,
        reason: str,
        scores: np.ndarray | float,
        same_as: np.ndarray | None = None,
        detail: str = "",
    ) -> None:
        """Reject photos, possibly each because of another one."""
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._reason[indices], self._scores[indices] = self._reasons.index(reason), scores
        self.alive[indices] = False
        if same_as is not None:
            self._partners[indices] = same_as
        if detail:
            self._details.append(detail)
            self._detail[indices] = len(self._details) - 1

    def reject_duplicates(self) -> None:
        """Reject photos with the same pixels as another."""
        chosen = np.flatnonzero(self.alive)
        same = duplicates(self._column("hash").take(pa.array(chosen)), self.ranks[chosen])
        self.reject(chosen[same >= 0], "duplicate", 0.0, chosen[same[same >= 0]])

    def reject_near_duplicates(self, distance: int) -> None:
        """Reject photos whose perceptual hashes differ from that of a preferred one in at most `distance` bits."""
        preferred_first = np.empty(len(self.ranks), np.int64)
        preferred_first[self.ranks] = np.arange(len(self.ranks))
        chosen = preferred_first[self.alive[preferred_first]]
        repeats, bits = near_repeats(self._phashes(chosen), distance)
        gone = np.flatnonzero(repeats >= 0)
        self.reject(chosen[gone], "near_duplicate", bits[gone].astype(float), chosen[repeats[gone]])

    def links(self, distance: int) -> np.ndarray:
        """Pairs that connect near-duplicates that are alive, from `close_links`."""
        chosen = np.flatnonzero(self.alive)
        pairs = close_links(self._phashes(chosen), distance)
        pairs[:, :2] = chosen[pairs[:, :2]]
        return pairs

    def alive_by_label(self) -> dict[str, np.ndarray]:
        """Indices of each label's photos that are alive."""
        codes, names = self._labels
        alive = np.flatnonzero(self.alive)
        order = alive[np.argsort(codes[alive], kind="stable")]
        ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
        found = dict(zip(names, np.split(order, ends)[: len(names)], strict=True))
        return {name: found[name] for name in sorted(found)}

    def reject_outliers(self, indices: np.ndarray, scores: np.ndarray, threshold: float) -> int:
        """Reject the photos that score above the threshold. Returns their number."""
        far = np.flatnonzero(scores > threshold)
        self.reject(indices[far], "outlier", scores[far], detail=f"threshold {threshold:.4f}")
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
        splits = np.zeros(len(self.alive), np.int8)
        apart = held_out(self._column("hash").take(pa.array(chosen)), place[pairs[:, :2]], validation)
        splits[chosen] = np.where(apart, 2, 1)
        ours = pa.array(self._reason > 0)
        changed = {
            "reason": pc.if_else(ours, pa.array(self._reasons).take(pa.array(self._reason)), self._column("reason")),
            "score": pc.if_else(ours, pa.array(self._scores), self._column("score")),
            "detail": self._with_details(),
        }
        table = self.records
        for name, values in changed.items():
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        of_split = pa.array([None, "train", "validation"], pa.string()).take(pa.array(splits))
        partners = pa.array(self._partners, mask=self._partners < 0)
        return table.append_column("split", of_split).append_column("partner", partners)

    def _phashes(self, indices: np.ndarray) -> np.ndarray:
        """Perceptual hashes of photos that have one: uint64 (n,)."""
        found = self._column("phash").take(pa.array(indices)).cast(pa.binary(8))
        return words_of(np.frombuffer(found.buffers()[1] or b"", np.uint8)[: 8 * len(found)].reshape(-1, 8))

    def _with_details(self) -> pa.Array:
        """The column `detail`, with what is known of the photos rejected here."""
        details = pc.if_else(
            pa.array(self._detail > 0), pa.array(self._details).take(pa.array(self._detail)), self._column("detail")
        )
        paired = np.flatnonzero(self._partners >= 0)
        partners = self._partners[paired]
        codes, names = self._labels
        like = pc.binary_join_element_wise("like ", self._column("path").take(pa.array(partners)), "")
        labels = pc.binary_join_element_wise(", which is labelled ", pa.array(names, pa.string()), "")
        conflicts = pa.array(codes[paired] != codes[partners])
        others = pc.if_else(conflicts, labels.take(pa.array(codes[partners])), "")
        texts = pc.binary_join_element_wise(like, others, "")
        return pc.replace_with_mask(details, pa.array(self._partners >= 0), texts)


def _codes(column: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Each value's number, and the values."""
    found = pc.dictionary_encode(column)
    return found.indices.to_numpy(), found.dictionary.to_pylist()


def preference(paths: Sequence[str] | pa.Array, areas: np.ndarray) -> np.ndarray:
    """Rank of each photo, 0 for the most preferred: by more pixels, then shorter path, then path.

    Shorter paths win because copies have longer names ("photo copy.jpg").
    """
    names = pa.array(paths, pa.string())
    lengths = pc.utf8_length(names).to_numpy()
    # Most photos are told apart by one number, and numbers sort fast; only the others' paths are compared.
    keys = (areas.max(initial=0) - areas.astype(np.int64)) * (lengths.max(initial=0) + 1) + lengths
    order, tied = _sorted(keys.astype(np.uint64))
    some = order[tied]
    table = pa.table({"key": keys[some], "path": names.take(pa.array(some)), "number": some})
    order[tied] = some[pc.sort_indices(table, [(name, "ascending") for name in table.column_names]).to_numpy()]
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks


def duplicates(hashes: Sequence[str] | pa.Array, ranks: np.ndarray) -> np.ndarray:
    """For each photo, the index of the photo it is an exact copy of, or -1: int64 (n,)."""
    names = pa.array(hashes, pa.string())
    # The beginnings of most hashes are told apart as numbers, which sort fast; only the others are compared whole.
    beginnings = pc.utf8_rpad(pc.utf8_slice_codeunits(names, 0, 16), 16).cast(pa.binary()).cast(pa.binary(16))
    keys = np.frombuffer(beginnings.buffers()[1] or b"", np.uint64)[: 2 * len(names)].reshape(-1, 2)
    order, tied = _sorted((keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ keys[:, 1]) >> np.uint64(24))
    some = order[tied]
    which = pc.dictionary_encode(names.take(pa.array(some))).indices.to_numpy()
    order = np.lexsort((ranks[some], which))
    first = np.ones(len(order), bool)
    first[1:] = which[order][1:] != which[order][:-1]
    best = np.empty(len(order), np.int64)
    best[order] = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    found = np.full(len(names), -1, np.int64)
    found[some] = np.where(best == np.arange(len(best)), -1, some[best])
    return found


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of keys, uint64 (n,), as of `np.argsort`; and whether each of them, in order, occurs more than once.

    Keys with bits to spare are sorted with their places in their last bits: nothing has to be looked up then.
    """
    places = np.arange(len(keys), dtype=np.uint64)
    bits = np.uint64(len(keys).bit_length())
    if int(keys.max(initial=0)).bit_length() + int(bits) <= 64:
        ordered = keys << bits | places
        ordered.sort()
        order = (ordered & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        ordered >>= bits
    else:
        order = np.argsort(keys)
        ordered = keys[order]
    as_next = ordered[1:] == ordered[:-1]
    tied = np.zeros(len(ordered), bool)
    tied[:-1] |= as_next
    tied[1:] |= as_next
    return order, tied


def close_links(words: np.ndarray, distance: int) -> np.ndarray:
    """Fewer pairs that connect the same photos as `close_pairs`: equal hashes form a chain.

    A photo that occurs a hundred times would give 4,950 pairs.
    """
    hashes, first, which = np.unique(words, return_index=True, return_inverse=True)
    links = close_pairs(hashes, distance)
    links[:, :2] = first[links[:, :2]]
    order = np.argsort(which, kind="stable")
    same = np.flatnonzero(which[order][1:] == which[order][:-1])
    chains = np.stack([order[same], order[same + 1], np.zeros_like(same)], axis=1)
    return np.concatenate([links, chains.astype(np.int64)])


def near_repeats(words: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """As `near_duplicates`, for perceptual hashes in order of preference, uint64 (n,).

    Photos with the same hash are alike to all others, so only the preferred of them is compared.
    """
    hashes, first, which = np.unique(words, return_index=True, return_inverse=True)
    repeats, bits = near_duplicates(close_pairs(hashes, distance), first)
    kept = first[np.where(repeats >= 0, repeats, np.arange(len(hashes)))][which]
    return np.where(kept == np.arange(len(words)), -1, kept), bits[which]


def near_duplicates(pairs: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each photo, the index of the kept photo it nearly repeats, or -1, and the bits in which they differ.

    In order of preference, a photo is kept unless it is close to one already kept. So no two kept photos are a pair,
    and a chain of small steps doesn't reject photos that look different. Photos are decided many at a time: those
    whose preferred neighbors are all rejected are kept, and their other neighbors rejected.
    """
    count = len(ranks)
    swapped = ranks[pairs[:, 0]] > ranks[pairs[:, 1]]
    better, worse = np.where(swapped, pairs[:, 1], pairs[:, 0]), np.where(swapped, pairs[:, 0], pairs[:, 1])
    rejected = np.zeros(count, bool)
    one, other = better, worse
    while len(one):
        blocked = np.zeros(count, bool)
        blocked[other] = True
        rejected[other[~blocked[one]]] = True
        open_ = ~(rejected[one] | rejected[other])
        one, other = one[open_], other[open_]
    repeats, bits = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    counts = np.flatnonzero(~rejected[better])
    counts = counts[np.argsort(ranks[better[counts]], kind="stable")]
    photos, first = np.unique(worse[counts], return_index=True)  # the most preferred neighbor comes first
    repeats[photos], bits[photos] = better[counts[first]], pairs[counts[first], 2]
    return repeats, bits
