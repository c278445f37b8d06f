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
    found = [np.empty((0, 3), np.int64)]
    for chosen in itertools.combinations(range(len(bands)), equal):
        before = [np.uint64(bands[band]) for band in range(chosen[-1]) if band not in chosen]
        keys = _keys(words, [(edges[band], bands[band]) for band in chosen])
        for one, other in _equal(keys):
            differ = words[one] ^ words[other]
            bits = np.bitwise_count(differ)
            # A pair counts in the first of the tables where it is found.
            new = (bits <= distance) & np.logical_and.reduce([differ & band != 0 for band in before], 0)
            ends = np.sort(np.stack([one[new], other[new]], 1), axis=1)
            found.append(np.column_stack([ends, bits[new]]).astype(np.int64))
    return np.concatenate(found)


def _keys(words: np.ndarray, bands: list[tuple[int, int]]) -> np.ndarray:
    """The bits of some bands, or 32 bits made from them, above each hash's index: uint64 (n,), sorted."""
    key, width = np.zeros_like(words), 0
    for low, mask in bands:
        key |= ((words & np.uint64(mask)) >> np.uint64(low)) << np.uint64(width)
        width += mask.bit_count()
    if width > 32:
        key = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)  # equal keys stay equal
    packed: np.ndarray = (key << np.uint64(32)) | np.arange(len(words), dtype=np.uint64)
    packed.sort()
    return packed


def _equal(packed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices with equal keys: those of neighbors in the table, then those two places apart, and so on."""
    keys, indices = packed >> np.uint64(32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    places, step = np.flatnonzero(keys[1:] == keys[:-1]), 1
    while len(places):
        yield indices[places], indices[places + step]
        step += 1
        places = places[places + step < len(keys)]
        places = places[keys[places] == keys[places + step]]


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
