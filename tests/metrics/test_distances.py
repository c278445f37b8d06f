"""Distances between sets of features, against closed forms, simulations and plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from raygan.errors import RayganError
from raygan.metrics import distances
from raygan.metrics.distances import (
    COVERAGE_NEIGHBORS,
    PRECISION_NEIGHBORS,
    density_coverage,
    diversity,
    fid,
    kid,
    kid_difference,
    nearest,
    precision_recall,
)


def plain_kid(real, fake):
    """The unbiased squared MMD of all images at once, by its definition."""
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    m, n = len(real), len(fake)
    rr, ff, rf = kernel(real, real), kernel(fake, fake), kernel(real, fake)
    return (
        (rr.sum() - rr.diagonal().sum()) / (m * (m - 1))
        + (ff.sum() - ff.diagonal().sum()) / (n * (n - 1))
        - 2 * rf.mean()
    ).item()


def normal(count, dim, shift=0.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, dim))).float()


def test_the_expected_kid_of_two_samples_of_one_distribution_is_zero():
    """Over 200 pairs of samples the mean is within 3 of its standard errors of 0."""
    values = [kid(normal(40, 5, seed=2 * i), normal(40, 5, seed=2 * i + 1), subsets=10)[0] for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize(("shift", "narrowest", "widest"), [(0.0, 0.9, 2.5), (0.5, 0.7, 1.6)])
def test_kids_standard_error_is_the_spread_over_repeated_samples(shift, narrowest, widest):
    found = [kid(normal(60, 5, seed=i), normal(60, 5, shift, seed=1000 + i), subsets=40) for i in range(100)]
    values, errors = np.array(found).T
    assert narrowest < np.sqrt(np.mean(errors**2)) / np.std(values) < widest


def test_kid_takes_four_images_and_refuses_fewer_and_nan():
    value, error = kid(normal(4, 3), normal(9, 3, seed=1))
    assert np.isfinite([value, error]).all()
    with pytest.raises(RayganError, match="needs at least 4 generated images, not 3"):
        kid(normal(9, 3), normal(3, 3))
    broken = normal(9, 3)
    broken[2, 1] = float("nan")
    with pytest.raises(RayganError, match="1 of 9 real images are not finite"):
        kid(broken, normal(9, 3))


def test_identical_sets_have_distance_0_and_overlap_1():
    features = normal(50, 8)
    assert fid(features, features) == pytest.approx(0, abs=1e-6)
    assert precision_recall(features, features) == (1, 1)
    density, coverage = density_coverage(features, features)
    assert coverage == 1
    assert 0.8 < density < 1.5
    distances, index = nearest(features, features)
    assert distances.abs().max() < 1e-5
    assert index.tolist() == list(range(50))
    assert diversity(features[:1].repeat(9, 1)) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_of_sets_with_a_known_overlap():
    """Reals have the clusters A and B, fakes have B and twice C: only B is in both."""
    a, b, c = (normal(30, 3, seed=i) + 100 * torch.eye(3)[i] for i in range(3))
    jitter = 0.001 * normal(30, 3, seed=9)
    real, fake = torch.cat([a, b]), torch.cat([b + jitter, c, c + jitter])
    precision, recall = precision_recall(real, fake)
    assert precision == pytest.approx(1 / 3)
    assert recall == pytest.approx(1 / 2)
    density, coverage = density_coverage(real, fake)
    assert coverage == pytest.approx(1 / 2)
    assert 0.25 < density < 0.5


def test_precision_recall_density_and_coverage_agree_with_the_authors_package():
    """prdc by Naeem et al., on features of unit length, as `distances` scales them."""
    real, fake = normal(300, 16, seed=1), normal(250, 16, shift=0.4, seed=2)
    units = [torch.nn.functional.normalize(each, dim=1).double().numpy() for each in (real, fake)]
    of_three, of_five = (compute_prdc(*units, nearest_k=k) for k in (PRECISION_NEIGHBORS, COVERAGE_NEIGHBORS))
    assert precision_recall(real, fake) == pytest.approx((of_three["precision"], of_three["recall"]), abs=1e-6)
    assert density_coverage(real, fake) == pytest.approx((of_five["density"], of_five["coverage"]), abs=1e-6)
    assert 0.05 < of_three["recall"] < 0.95


def test_fid_is_its_formula_in_plain_numpy():
    """|m1 - m2|^2 + tr(A + B) - 2 tr sqrt(AB), the last by the eigenvalues of AB, of correlated features."""
    mix = np.random.default_rng(3).normal(size=(6, 6))
    real, fake = (normal(400, 6, shift, seed).double() @ torch.from_numpy(mix) for shift, seed in ((0, 1), (0.3, 2)))
    first, second = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    shift = (real.mean(0) - fake.mean(0)).square().sum().item()
    assert fid(real, fake) == pytest.approx(shift + np.trace(first + second) - 2 * root, rel=1e-8)


def test_kid_of_one_subset_is_its_definition():
    """With subsets of half of each set, each is a plain MMD, so their mean over all subsets is within their spread."""
    real, fake = normal(40, 6, seed=1), normal(40, 6, shift=0.5, seed=2)
    random = np.random.RandomState(0)
    values = []
    for _ in range(50):
        chosen = [random.choice(40, 20, replace=False) for _ in range(2)]
        values.append(plain_kid(real[chosen[1]].double(), fake[chosen[0]].double()))
    assert kid(real, fake)[0] == pytest.approx(np.mean(values), rel=1e-9)


def test_diversity_and_nearest_match_their_definitions():
    features = normal(20, 4)
    unit = torch.nn.functional.normalize(features, dim=1)
    similar = (unit @ unit.T).numpy()
    others = ~np.eye(20, dtype=bool)
    assert diversity(features) == pytest.approx(1 - similar[others].mean(), abs=1e-5)
    distances, _ = nearest(features, features, itself=True)
    expected = [1 - similar[i][others[i]].max() for i in range(20)]
    assert distances.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_too_few_images_are_refused(metric):
    with pytest.raises(RayganError, match="needs at least"):
        metric(normal(20, 3), normal(3, 3))


def test_a_difference_of_kids_is_that_of_the_whole_sets_and_its_error_the_spread_over_repeated_samples(monkeypatch):
    monkeypatch.setattr(distances, "_ROWS", 25)  # of the matrices, which are never whole
    found = []
    for i in range(150):
        real, first, second = (
            normal(40, 5, seed=i),
            normal(60, 5, 0.5, seed=1000 + i),
            normal(60, 5, 0.3, seed=2000 + i),
        )
        value, error = kid_difference(real, first, second)
        found.append(
            (value, error, plain_kid(real.double(), first.double()) - plain_kid(real.double(), second.double()))
        )
    values, errors, expected = np.array(found).T
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert 0.8 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.25
