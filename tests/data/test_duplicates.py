"""Duplicates, near-duplicates and the split, against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raygan.data import chunks, duplicates
from raygan.data.neighbors import close_pairs, words_of
from raygan.data.split import held_out


def some_hashes(count: int, seed: int = 0, same: int = 0) -> np.ndarray:
    """Random 64-bit hashes, uint64; half are copies of others with up to 12 bits flipped.

    same: how many of their first bits all hashes have in common, unless they are flipped.
    """
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count, 64), dtype=np.uint8)
    bits[:, :same] = 0
    for i in range(1, count, 2):
        bits[i] = bits[i - 1]
        bits[i, random.choice(64, random.integers(0, 13), replace=False)] ^= 1
    return words_of(np.packbits(bits, axis=1))


def pairs_of(hashes: np.ndarray, some: np.ndarray, distance: int) -> np.ndarray:
    """All close pairs with at least one of some hashes, which are given by index."""
    between = np.bitwise_count(hashes[some, None] ^ hashes)
    one, other = np.nonzero(between <= distance)
    pairs = np.column_stack([np.sort(np.stack([some[one], other], 1), 1), between[one, other]])
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 8, 11, 15])
@pytest.mark.parametrize("same", [0, 48])
def test_the_index_finds_every_close_pair(distance, same):
    hashes = np.unique(some_hashes(600, same=same))
    np.testing.assert_array_equal(close_pairs(hashes, distance), pairs_of(hashes, np.arange(len(hashes)), distance))


def test_every_close_pair_of_many_hashes_is_found():
    hashes = np.unique(some_hashes(100_000))  # more than are sorted at a time
    found, some = close_pairs(hashes, 6), np.arange(0, len(hashes), 1000)
    mine = np.isin(found[:, :2], some).any(axis=1)
    np.testing.assert_array_equal(found[mine], pairs_of(hashes, some, 6))


def test_a_few_links_connect_the_same_photos_as_all_pairs():
    hashes = np.repeat(some_hashes(60, seed=4), 20)[np.random.default_rng(5).permutation(1200)]
    contents = [f"{value:08x}" for value in np.random.default_rng(6).integers(2**32, size=1200)]
    pairs, links = pairs_of(hashes, np.arange(1200), 6), duplicates.close_links(hashes, 6)
    assert np.array_equal(held_out(contents, links, 0.3), held_out(contents, pairs, 0.3))
    assert len(links) < 1200 + 60 < 10_000 < len(pairs)


def test_kept_photos_are_no_near_duplicates_and_each_rejected_one_repeats_a_kept_one():
    hashes, ranks = some_hashes(400, seed=1), np.random.default_rng(2).permutation(400)
    repeats, bits = duplicates.near_duplicates(pairs_of(hashes, np.arange(400), 8), ranks)
    between = np.bitwise_count(hashes[:, None] ^ hashes)
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
    alike = ["h" * 20, "h" * 20 + "i", "i", "h" * 20]  # the beginnings are equal, the hashes aren't
    assert duplicates.duplicates(alike, ranks).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("count", [0, 1, 2, 400])
@pytest.mark.parametrize("largest", [100, 2**61])
def test_preference_is_by_pixels_then_length_then_path_then_place(count, largest):
    random = np.random.default_rng(count)
    paths = ["".join(random.choice(list("ab/é"), random.integers(1, 4))) for _ in range(count)]
    areas = random.choice([4, 9, largest], count)
    best_first = sorted(range(count), key=lambda n: (-areas[n], len(paths[n]), paths[n].encode(), n))
    assert duplicates.preference(paths, areas)[best_first].tolist() == list(range(count))


def greedy(pairs: np.ndarray, ranks: np.ndarray) -> list[int]:
    """Photo by photo, in order of preference: the kept photo that each repeats, or -1."""
    repeats = [-1] * len(ranks)
    for index in np.argsort(ranks).tolist():
        if repeats[index] < 0:
            for one, other in (*pairs[:, :2].tolist(), *pairs[:, 1::-1].tolist()):
                if one == index and repeats[other] < 0 and ranks[other] > ranks[index]:
                    repeats[other] = index
    return repeats


def test_many_at_a_time_are_decided_as_one_after_the_other():
    random = np.random.default_rng(7)
    chain = np.arange(40)
    for pairs in (random.integers(0, 60, (150, 2)), np.stack([chain, chain + 1], 1)):
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        ranks = random.permutation(60)
        with_bits = np.column_stack([pairs, np.ones(len(pairs), int)])
        assert duplicates.near_duplicates(with_bits, ranks)[0].tolist() == greedy(pairs, ranks)


def records(hashes: list[str], phashes: np.ndarray, random: np.random.Generator) -> pa.Table:
    count = len(hashes)
    rows = {
        "path": [f"{random.integers(1000)}/{number}.jpg" for number in range(count)],
        "label": random.choice(["cat", "dog"], count).tolist(),
        "width": random.integers(50, 60, count).tolist(),
        "height": [64] * count,
        "hash": hashes,
        "phash": [int(value).to_bytes(8, "big") for value in phashes],
        "detail": [""] * count,
    }
    columns = [pa.array(rows.get(field.name, [None] * count), field.type) for field in chunks.RECORD]
    return pa.table(columns, schema=chunks.RECORD)


def test_verdicts_are_those_of_pairwise_comparisons():
    random = np.random.default_rng(9)
    phashes = np.repeat(some_hashes(100, seed=3), 3)
    hashes = [f"{number % 250:08x}" for number in range(300)]
    table = records(hashes, phashes, random)
    verdicts = duplicates.Verdicts(table)
    ranks = duplicates.preference(table["path"].to_pylist(), table["width"].to_numpy() * 64)
    verdicts.reject_duplicates()
    alive = np.array([ranks[n] == min(ranks[m] for m in range(300) if hashes[m] == hashes[n]) for n in range(300)])
    assert np.array_equal(verdicts.alive, alive)
    verdicts.reject_near_duplicates(6)
    chosen = np.flatnonzero(alive)
    repeats = greedy(pairs_of(phashes[chosen], np.arange(len(chosen)), 6), ranks[chosen])
    found = verdicts.table(np.empty((0, 3), int), 0.2)
    for place, photo in enumerate(chosen.tolist()):
        partner = None if repeats[place] < 0 else int(chosen[repeats[place]])
        assert found["partner"][photo].as_py() == partner
        if partner is not None:
            assert found["reason"][photo].as_py() == "near_duplicate"
            said = f"like {table['path'][partner].as_py()}"
            if table["label"][photo] != table["label"][partner]:
                said += f", which is labelled {table['label'][partner].as_py()}"
            assert found["detail"][photo].as_py() == said
    kept = [photo for photo in range(300) if found["split"][photo].as_py()]
    assert kept == [photo for photo in range(300) if found["reason"][photo].as_py() is None]
    assert {label: rows.tolist() for label, rows in verdicts.alive_by_label().items()} == {
        label: [n for n in kept if table["label"][n].as_py() == label] for label in ("cat", "dog")
    }
