"""Duplicates, near-duplicates and the split, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from raygan.data import duplicates
from raygan.data.split import split


def some_hashes(count: int, seed: int = 0) -> np.ndarray:
    """Random 64-bit hashes; half are copies of others with up to 12 bits flipped."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count, 64), dtype=np.uint8)
    for i in range(1, count, 2):
        bits[i] = bits[i - 1]
        bits[i, random.choice(64, random.integers(0, 13), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def distances(hashes: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(hashes, axis=1).astype(int)
    return (bits[:, None] != bits[None]).sum(axis=2)


@pytest.mark.parametrize("distance", [0, 3, 6, 11, 15])
def test_the_index_finds_every_close_pair(distance):
    hashes = some_hashes(600)
    between = distances(hashes)
    one, other = np.nonzero(np.triu(between <= distance, 1))
    expected = np.stack([one, other, between[one, other]], axis=1)
    np.testing.assert_array_equal(duplicates.close_pairs(hashes, distance), expected)


def test_a_few_links_connect_the_same_photos_as_all_pairs():
    hashes = np.repeat(some_hashes(60, seed=4), 20, axis=0)[np.random.default_rng(5).permutation(1200)]
    contents = [f"{value:08x}" for value in np.random.default_rng(6).integers(2**32, size=1200)]
    pairs, links = duplicates.close_pairs(hashes, 6), duplicates.close_links(hashes, 6)
    assert split(contents, links, 0.3) == split(contents, pairs, 0.3)
    assert len(links) < 1200 + 60 < 10_000 < len(pairs)


def test_kept_photos_are_no_near_duplicates_and_each_rejected_one_repeats_a_kept_one():
    hashes, ranks = some_hashes(400, seed=1), np.random.default_rng(2).permutation(400)
    pairs = duplicates.close_pairs(hashes, 8)
    repeats, bits = duplicates.near_duplicates(pairs, ranks)
    between = distances(hashes)
    kept = np.flatnonzero(repeats < 0)
    assert (between[np.ix_(kept, kept)] + 99 * np.eye(len(kept)) > 8).all()
    gone = np.flatnonzero(repeats >= 0)
    assert len(gone)
    np.testing.assert_array_equal(between[gone, repeats[gone]], bits[gone])
    assert (ranks[repeats[gone]] < ranks[gone]).all()


def test_the_original_is_preferred_to_its_copies():
    ranks = duplicates.preference(["b/x copy.jpg", "b/x.jpg", "a/y.jpg", "z.jpg"], np.array([9, 9, 9, 4]))
    assert ranks.tolist() == [2, 1, 0, 3]
    assert duplicates.duplicates(["h", "h", "h", "i"], ranks).tolist() == [2, 2, -1, -1]
