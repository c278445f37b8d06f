"""Distances between sets of features, against closed forms, simulation and plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygan.errors import RayganError
from raygan.judge.distances import kid


def plain_kid(real, fake):
    """The unbiased squared MMD of all images at once, straight from the definition."""
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


def test_kid_is_the_definition_on_the_mean_over_subsets():
    real, fake = normal(80, 6, seed=1), normal(60, 6, shift=0.5, seed=2)
    found, _ = kid(real, fake, subsets=2000, subset_size=20)
    assert found == pytest.approx(plain_kid(real.double(), fake.double()), rel=0.02)


def test_kid_of_two_halves_of_one_set_is_zero_in_expectation():
    """Unbiased: over 200 pairs of samples of one distribution the mean is within 3 of its standard errors of 0."""
    values = [kid(normal(40, 5, seed=2 * i), normal(40, 5, seed=2 * i + 1), subsets=10)[0] for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize(("shift", "narrowest", "widest"), [(0.0, 0.9, 2.5), (0.5, 0.7, 1.6)])
def test_the_standard_error_is_the_spread_over_repeated_samples(shift, narrowest, widest):
    found = [kid(normal(60, 5, seed=i), normal(60, 5, shift, seed=1000 + i), subsets=40) for i in range(100)]
    values, errors = np.array(found).T
    assert narrowest < np.sqrt(np.mean(errors**2)) / np.std(values) < widest


def test_small_sets_work_and_smaller_ones_are_refused():
    value, error = kid(normal(4, 3), normal(9, 3, seed=1))
    assert np.isfinite([value, error]).all()
    with pytest.raises(RayganError, match="needs at least 4 generated images, not 3"):
        kid(normal(9, 3), normal(3, 3))
    broken = normal(9, 3)
    broken[2, 1] = float("nan")
    with pytest.raises(RayganError, match="1 of 9 real images are not finite"):
        kid(broken, normal(9, 3))
