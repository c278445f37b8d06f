"""Perceptual hashes that differ in few bits, found without comparing all pairs.

Of the 64 bits, d + k bands of equal width are taken. Hashes that differ in at most d bits agree in at least k whole
bands, so they are neighbors in the table of some k bands: the hashes, with the bits of these bands moved to the front,
in order. k is so large that a random hash shares its key with about one other, whatever the number of hashes n. So
the cost is that of sorting: for n up to 3 million and the default of 6 bits, 84 tables (k = 3), whose time and memory
grow as n log n. Hashes of photos aren't random; what that costs is the number of pairs with equal keys.

Beyond 8 bits there would be too many tables; then an index over four 16-bit bands is asked for each hash (a multi-index
hash table), whose cost grows faster than linearly from about a million hashes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import log2

import numpy as np

#: Maximum number of differing bits for which tables of bands are sorted.
_MOST_BITS = 8

#: Bits of a key that suffice: with more, the tables would become too many.
_KEY_BITS = 21

#: Hashes that are sorted at a time.
_IN_CACHE = 1 << 15

#: Hashes looked up at a time in the index for more bits; bounds the memory of the answer.
_QUERIES = 20_000


def words_of(hashes: np.ndarray) -> np.ndarray:
    """Hashes, uint8 (n, 8), as numbers, uint64 (n,)."""
    return np.ascontiguousarray(hashes).view(">u8").ravel().astype(np.uint64)


def close_pairs(words: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of hashes that differ in few bits.

    Args:
        words: hashes, uint64 (n,), no two equal, in order.
        distance: maximum number of differing bits, 0 to 15.

    Returns:
        int64 (pairs, 3): index, larger index, differing bits; in order.
    """
    if len(words) < 2:
        return np.empty((0, 3), np.int64)
    pairs = _by_tables(words, distance) if distance <= _MOST_BITS else _by_index(words, distance)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _by_tables(words: np.ndarray, distance: int) -> np.ndarray:
    equal = next(k for k in itertools.count(1) if 64 * k / (distance + k) >= min(log2(len(words)) - 1, _KEY_BITS))
    count = distance + equal
    width = 64 // count
    found = [(words[:0], words[:0])]
    for first in range(distance + 1):
        turned = _turned(words, first * width)
        turned.sort()
        tables = [
            _Table((first, *others), width) for others in itertools.combinations(range(first + 1, count), equal - 1)
        ]
        for part, table in itertools.product(_parts(turned, width), tables):
            ones, differ = _close(table.of(part), equal * width, distance)
            new = np.flatnonzero((differ & table.earlier[:, None] != 0).all(axis=0))
            found.append((table.back(ones[new]), table.back(differ[new])))
    ones, differ = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ends = np.sort(np.searchsorted(words, np.stack([ones, ones ^ differ], 1)), axis=1)
    return np.column_stack([ends, np.bitwise_count(differ)]).astype(np.int64)


def _close(table: np.ndarray, key_bits: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes that have a close one with the same key, and the bits in which the two differ.

    First come neighbors in the table, then hashes two places apart, and so on. Nearly all of them differ in too many
    bits, so these are counted before anything else is looked at.

    Args:
        table: hashes, which this sorts.
        key_bits: how many of the first bits are the key.
        distance: maximum number of differing bits.
    """
    table.sort()
    ones, bits = [table[:0]], [table[:0]]
    step, places = 1, np.arange(len(table) - 1)
    while len(places):
        # Many hashes have one with their key in the next two places: reading a row is faster than looking them up.
        near, far = (table[:-step], table[step:]) if step <= 2 else (table.take(places), table[step:].take(places))
        differ = near ^ far
        same = differ >> np.uint64(64 - key_bits) == 0
        close = np.flatnonzero(same & (np.bitwise_count(differ) <= distance))
        ones.append(near[close])
        bits.append(differ[close])
        if step > 1:
            places = places.take(np.flatnonzero(same))  # several times as fast as by a mask
        step += 1
        places = places[: np.searchsorted(places, len(table) - step)]
    return np.concatenate(ones), np.concatenate(bits)


def _parts(ordered: np.ndarray, width: int) -> list[np.ndarray]:
    """Hashes in order, cut where their first `width` bits differ, into parts small enough for a core's cache."""
    used = min(width, max(0, round(log2(len(ordered) / _IN_CACHE))))
    edges = np.arange(1, 1 << used, dtype=np.uint64) << np.uint64(64 - used)
    return np.split(ordered, np.searchsorted(ordered, edges))


def _turned(words: np.ndarray, bits: int) -> np.ndarray:
    """Hashes rotated to the left."""
    bits %= 64
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits)) if bits else words.copy()


class _Table:
    """Some bands, to whose table it brings hashes that are turned to the first of them.

    Args:
        bands: numbers, in order.
        width: bits of a band.
    """

    def __init__(self, bands: Sequence[int], width: int):
        self._turn, self._width = bands[0] * width, width
        places = [band - bands[0] for band in bands]
        self._moves = [(place, other) for place, other in enumerate(places) if place != other]
        earlier = sorted(set(range(bands[-1])) - set(bands))
        masks = np.array([((1 << width) - 1) << (64 - (band + 1) * width) for band in earlier], np.uint64)
        #: The other bands up to the last one, at their places here: hashes that agree in one are in an earlier table.
        self.earlier = self.of(_turned(masks, self._turn))

    def of(self, words: np.ndarray) -> np.ndarray:
        """Turned hashes with this table's bands in front."""
        return self._swapped(words, self._moves)

    def back(self, words: np.ndarray) -> np.ndarray:
        """The hashes, as they were."""
        return _turned(self._swapped(words, self._moves[::-1]), -self._turn)

    def _swapped(self, words: np.ndarray, moves: Sequence[tuple[int, int]]) -> np.ndarray:
        """Hashes with bands swapped, one pair of places after the other."""
        swapped = words.copy()
        for place, other in moves:
            apart = np.uint64((other - place) * self._width)
            change = swapped >> apart
            change ^= swapped
            change &= np.uint64(((1 << self._width) - 1) << (64 - (other + 1) * self._width))
            swapped ^= change
            change <<= apart
            swapped ^= change
        return swapped


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
