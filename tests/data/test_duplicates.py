"""Duplicates, near-duplicates, outliers, variation and split, against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raygan.data import chunks, duplicates, outliers, variation
from raygan.data.prepare import _Work
from raygan.data.settings import PrepareSettings
from raygan.data.sources import Listing
from tests.data.messy import picture


def some_hashes(count: int, seed: int = 0) -> np.ndarray:
    """Random 64-bit hashes, half of which are others with up to 12 bits flipped."""
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


def test_links_connect_what_pairs_connect_and_are_few():
    hashes = np.repeat(some_hashes(60, seed=4), 20, axis=0)[np.random.default_rng(5).permutation(1200)]
    contents = [f"{value:08x}" for value in np.random.default_rng(6).integers(2**32, size=1200)]
    pairs, links = duplicates.close_pairs(hashes, 6), duplicates.close_links(hashes, 6)
    assert duplicates.split(contents, links, 0.3) == duplicates.split(contents, pairs, 0.3)
    assert len(links) < 1200 + 60 < 10_000 < len(pairs)


def test_no_two_kept_photos_are_near_duplicates_and_none_goes_without_one():
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


def test_the_split_follows_content_and_never_parts_a_group():
    random = np.random.default_rng(3)
    hashes = [random.bytes(32).hex() for _ in range(4000)]
    pairs = np.array([(i, i + 1) for i in range(0, 400, 3)])
    splits = duplicates.split(hashes, pairs, 0.1)
    assert splits.count("validation") / len(splits) == pytest.approx(0.1, abs=0.02)
    assert all(splits[one] == splits[other] for one, other in pairs)
    alone = duplicates.split(hashes[1000:], np.empty((0, 2), int), 0.1)
    assert alone == splits[1000:]


def test_equal_photos_stay_together_when_the_one_between_them_goes(tmp_path, monkeypatch):
    about = {"label": "cat", "width": 64, "height": 64, "phash": bytes(8)}
    hashes = ["00000000", "11111111", "88888888", "eeeeeeee", "ffffffff"]  # on their own, three would be for training
    rows = [{**about, "path": f"{i}.png", "hash": value} for i, value in enumerate(hashes)]
    monkeypatch.setattr(chunks, "read_records", lambda addresses: pa.Table.from_pylist(rows, chunks.RECORD))
    monkeypatch.setattr(_Work, "_reject_outliers", lambda work, verdicts: verdicts.reject(2, "outlier", 1.0))
    settings = PrepareSettings(input=["photos"], output=str(tmp_path), skip=["near_duplicate"], validation=0.5)
    records, _ = _Work(settings, Listing([], pa.table({})), str(tmp_path)).judge()
    assert records["split"].to_pylist() == ["validation", "validation", None, "validation", "validation"]


def test_scores_are_distances_to_the_nearest_neighbours(monkeypatch):
    random = np.random.default_rng(4)
    vectors = (random.normal(size=(300, 16)) + 1).astype(np.float16)
    unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -9)
    expected = 1 - np.sort(similar, axis=1)[:, -outliers.NEIGHBOURS :].mean(axis=1)
    np.testing.assert_allclose(outliers.scores(vectors), expected, atol=1e-4)
    monkeypatch.setattr(outliers, "EXACT", 100)
    assert np.corrcoef(outliers.scores(vectors), expected)[0, 1] > 0.99


def test_equal_vectors_count_as_neighbours():
    vectors = np.ones((20, 8), np.float16)
    np.testing.assert_allclose(outliers.scores(vectors), 0, atol=1e-5)


def test_the_threshold_spares_a_clean_class_and_catches_a_few_outliers():
    random = np.random.default_rng(5)
    clean = np.exp(random.normal(-1.5, 0.25, 3000))
    assert (clean > outliers.threshold(clean, 3)).mean() < 0.005
    dirty = np.concatenate([clean, np.full(90, np.exp(-1.5 + 5 * 0.25))])
    assert (dirty > outliers.threshold(dirty, 3))[-90:].all()


def test_a_class_of_copies_has_no_outliers():
    vectors = np.repeat(np.random.default_rng(8).normal(size=(30, 16)), 10, axis=0).astype(np.float16)
    scores = outliers.scores(vectors)
    assert not (scores > outliers.threshold(scores, 3)).any()


def test_projection_keeps_cosines():
    features = np.abs(np.random.default_rng(6).normal(size=(50, 1280))).astype(np.float32)
    features[1] = features[0]

    def cosines(vectors: np.ndarray) -> np.ndarray:
        unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
        return unit @ unit.T

    np.testing.assert_allclose(cosines(outliers.project(features)), cosines(features), atol=0.1)


def test_variation_is_the_mean_over_all_pairs():
    pixels = np.stack([np.asarray(picture(seed, 64)) for seed in range(12)])
    maps = variation.layouts(pixels)
    between = (maps @ maps.T)[np.triu_indices(12, 1)]
    assert variation.variation(maps.sum(axis=0), 12) == pytest.approx(1 - between.mean(), abs=1e-5)


def test_variation_knows_alike_from_different_and_not_bright_from_dark():
    alike = np.stack([np.asarray(picture(1, 64))] * 6)
    dimmed = (alike * np.linspace(0.5, 1, 6)[:, None, None, None]).astype(np.uint8)
    different = np.stack([np.asarray(picture(seed, 64)) for seed in range(30)])

    def of(pixels: np.ndarray) -> float | None:
        return variation.variation(variation.layouts(pixels).sum(axis=0), len(pixels))

    assert of(alike) == pytest.approx(0, abs=1e-5)
    assert of(dimmed) < 0.2
    assert of(different) > 0.95
    assert of(different[:1]) is None
