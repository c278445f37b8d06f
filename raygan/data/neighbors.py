"""Perceptual hashes that differ in few bits, found without comparing all pairs.

The 64 bits are cut into d + k bands. Hashes that differ in at most d bits agree in at least k whole bands, so they have
the same key in the table of some k bands: a table is the hashes sorted by these bands, where equal keys are
neighbors. k is so large that a random hash shares its key with about one other, whatever the number of hashes n. So
the cost is that of sorting: for n up to 3 million and the default of 6 bits, 84 tables (k = 3), whose time and memory
grow as n log n. Hashes of photos aren't random; what that costs is the number of pairs with equal keys.

Beyond 8 bits there would be too many tables; then an index over four 16-bit bands is asked for each hash (a multi-index
hash table), whose cost grows faster than linearly from about a million hashes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import log2

import numpy as np

#: Most differing bits for which tables of bands are sorted.
_MOST_BITS = 8

#: Bits of a key that suffice: with more, the tables would become too many.
_KEY_BITS = 21

#: Hashes that are sorted at a time.
_IN_CACHE = 1 << 15

_UPPER = np.uint64(0xFFFFFFFF00000000)

#: Hashes looked up at a time in the index for more bits; bounds the memory of the answer.
_QUERIES = 20_000


def words_of(hashes: np.ndarray) -> np.ndarray:
    """Hashes, uint8 (n, 8), as numbers, uint64 (n,)."""
    return np.ascontiguousarray(hashes).view(">u8").ravel().astype(np.uint64)


def close_pairs(words: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of hashes that differ in few bits.

    Args:
        words: hashes, uint64 (n,).
        distance: most differing bits, 0 to 15.

    Returns:
        int64 (pairs, 3): index, larger index, differing bits; in order.
    """
    if len(words) < 2:
        return np.empty((0, 3), np.int64)
    pairs = _by_tables(words, distance) if distance <= _MOST_BITS else _by_index(words, distance)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _by_tables(words: np.ndarray, distance: int) -> np.ndarray:
    equal = next(k for k in itertools.count(1) if 64 * k / (distance + k) >= min(log2(len(words)) - 1, _KEY_BITS))
    edges = np.round(np.linspace(0, 64, distance + equal + 1)).astype(int).tolist()
    bands = [((1 << (high - low)) - 1) << low for low, high in itertools.pairwise(edges)]
    tables = list(itertools.combinations(range(len(bands)), equal))
    found = [np.empty((0, 3), np.int64)]
    for first, same in itertools.groupby(tables, lambda table: table[0]):
        of_band = list(same)
        for part in _parts(words, edges[first], edges[first + 1]):
            own = words[part]  # gathered once: they are all over the memory
            for chosen in of_band:
                before = [np.uint64(bands[band]) for band in range(chosen[-1]) if band not in chosen]
                mask = np.uint64(sum(bands[band] for band in chosen))
                found += _close(own, part, mask, before, distance)
    return np.concatenate(found)


def _parts(words: np.ndarray, low: int, high: int) -> list[np.ndarray]:
    """Indices of the hashes by the upper of the bits from `low` to `high`, few enough for a core's cache."""
    used = min(high - low, max(0, round(log2(len(words) / _IN_CACHE))))
    values = ((words >> np.uint64(high - used)) & np.uint64((1 << used) - 1)).astype(np.uint16)
    ends = np.cumsum(np.bincount(values, minlength=1 << used))[:-1]
    return np.split(np.argsort(values, kind="stable"), ends)  # 16 bits are sorted by counting


def _close(
    words: np.ndarray, part: np.ndarray, mask: np.uint64, before: list[np.uint64], distance: int
) -> list[np.ndarray]:
    """Close pairs, as of `close_pairs`, of hashes that agree in a table's bits, and in no earlier table's.

    Args:
        words: hashes of a part.
        part: their indices among all.
        mask: the table's bits.
        before: bands that agree only in earlier tables.
        distance: most differing bits.
    """
    found = []
    for one, other, differ in _equal(words, mask, distance):
        new = np.logical_and.reduce([differ & mask == 0, *(differ & band != 0 for band in before)], 0)
        if new.any():
            ends = np.sort(np.stack([part[one[new]], part[other[new]]], 1), axis=1)
            found.append(np.column_stack([ends, np.bitwise_count(differ[new])]).astype(np.int64))
    return found


def _equal(words: np.ndarray, mask: np.uint64, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices of hashes that agree in the bits of a mask and differ in few, and the bits in which they differ.

    Hashes are sorted by 32 bits made from the mask's, so a few pairs agree only in these. First come pairs of
    neighbors in the table, then pairs two places apart, and so on. Nearly all of them differ in too many bits, so
    these are counted before anything else is looked up: of millions of hashes, this takes as long as sorting them.
    """
    table = words & mask
    table *= np.uint64(0x9E3779B97F4A7C15)  # equal bits stay equal, and the upper half depends on all of them
    table &= _UPPER
    table |= np.arange(len(words), dtype=np.uint64)
    table.sort()
    indices = (table & ~_UPPER).astype(np.int64)
    there = words[indices]
    as_next = np.zeros(len(table), bool)  # whether the next one has the same upper half
    as_next[:-1] = table[1:] ^ table[:-1] <= ~_UPPER
    places, step = np.flatnonzero(as_next), 1
    while len(places):
        differ = there.take(places)
        differ ^= there[step:].take(places)
        close = np.flatnonzero(np.bitwise_count(differ) <= distance)
        if len(close):
            yield indices[places[close]], indices[places[close] + step], differ[close]
        places = places[as_next[places + step]]
        step += 1


def _by_index(words: np.ndarray, distance: int) -> np.ndarray:
    import faiss

    hashes = words.astype(">u8").view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = distance // 4
    index.add(hashes)
    found = []
    for start in range(0, len(hashes), _QUERIES):
        limits, distances, neighbors = index.range_search(hashes[start : start + _QUERIES], distance + 1)
        ones = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)).astype(np.int64))
        pairs = np.stack([ones, neighbors, distances.astype(np.int64)], axis=1)
        found.append(pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 2] <= distance)])
    return np.concatenate(found)
