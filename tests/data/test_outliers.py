"""Outlier scores against brute force, and the threshold on made-up classes."""

from __future__ import annotations

import numpy as np

from raygan.data import outliers


def test_scores_are_mean_distances_to_the_nearest_neighbors():
    random = np.random.default_rng(4)
    vectors = (random.normal(size=(300, 16)) + 1).astype(np.float16)
    unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -9)
    expected = 1 - np.sort(similar, axis=1)[:, -outliers.NEIGHBORS :].mean(axis=1)
    np.testing.assert_allclose(outliers.scores(vectors), expected, atol=1e-4)


def test_some_vectors_stand_for_all():
    random = np.random.default_rng(4)
    vectors = random.normal(size=(3000, 16)) + 2
    vectors[::100] -= 2  # outliers, each in a direction of its own
    among = np.arange(0, 3000, 7)
    own = np.full(3000, -1)
    own[among] = np.arange(len(among))
    scored = outliers.scores(vectors.astype(np.float16), vectors[among].astype(np.float16), own)
    exact = outliers.scores(vectors.astype(np.float16))
    assert np.corrcoef(scored, exact)[0, 1] > 0.95
    worst = set(np.argsort(scored)[-30:].tolist())
    assert len(worst & set(np.argsort(exact)[-30:].tolist())) >= 25
    # A vector isn't its own neighbor.
    alone = outliers.scores(vectors[among].astype(np.float16))
    np.testing.assert_allclose(scored[among], alone, atol=1e-3)


def test_vectors_are_compared_with_all_others_in_parts(monkeypatch):
    vectors = np.random.default_rng(5).normal(size=(500, 16)).astype(np.float16)
    vectors[400:410] = vectors[3]  # more equals than neighbors
    whole = outliers.scores(vectors)
    monkeypatch.setattr(outliers, "PART", 64)  # the last part is smaller
    np.testing.assert_allclose(outliers.scores(vectors), whole, atol=1e-6)
    np.testing.assert_allclose(
        outliers.scores(vectors[100:200], vectors, np.arange(100, 200)), whole[100:200], atol=1e-6
    )


def test_equal_vectors_count_as_neighbors():
    vectors = np.ones((20, 8), np.float16)
    np.testing.assert_allclose(outliers.scores(vectors), 0, atol=1e-5)


def test_the_threshold_spares_a_clean_class_and_catches_outliers():
    random = np.random.default_rng(5)
    clean = np.exp(random.normal(-1.5, 0.25, 3000))
    assert (clean > outliers.threshold(clean, 3)).mean() < 0.005
    dirty = np.concatenate([clean, np.full(90, np.exp(-1.5 + 5 * 0.25))])
    assert (dirty > outliers.threshold(dirty, 3))[-90:].all()


def test_a_class_of_copies_has_no_outliers():
    vectors = np.repeat(np.random.default_rng(8).normal(size=(30, 16)), 10, axis=0).astype(np.float16)
    scores = outliers.scores(vectors)
    assert not (scores > outliers.threshold(scores, 3)).any()


def test_projection_preserves_cosines():
    features = np.abs(np.random.default_rng(6).normal(size=(50, 1280))).astype(np.float32)
    features[1] = features[0]

    def cosines(vectors: np.ndarray) -> np.ndarray:
        unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
        return unit @ unit.T

    np.testing.assert_allclose(cosines(outliers.project(features)), cosines(features), atol=0.1)
