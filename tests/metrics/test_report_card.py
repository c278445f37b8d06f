"""The report card's relative numbers, against their definitions in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygan.metrics.comparison import Comparison
from raygan.metrics.registry import METRICS


def test_copies_train_distance_and_diversity_match_their_definitions():
    random = np.random.default_rng(0)
    real, fake = random.normal(0, 1, (300, 8)), random.normal(0.3, 1, (200, 8))
    fake[:60] = real[:60] + random.normal(0, 0.02, (60, 8))  # near copies
    unit, made = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (real, fake))
    among = 1 - unit @ unit.T
    np.fill_diagonal(among, np.inf)
    spacing, nearest = among.min(1), (1 - made @ unit.T).min(1)

    def spread(units):
        others = ~np.eye(len(units), dtype=bool)
        return (1 - units @ units.T)[others].mean()

    sets = Comparison(torch.from_numpy(real).float(), torch.from_numpy(fake).float())
    found = {name: METRICS.load(name).compare(sets) for name in ("copies", "train_distance", "diversity")}
    assert found["copies"] == pytest.approx((nearest < np.quantile(spacing, 0.01)).mean())
    assert 0.2 < found["copies"] < 0.4
    assert found["train_distance"] == pytest.approx(nearest.mean() / spacing.mean(), rel=1e-4)
    assert found["diversity"] == pytest.approx(spread(made) / spread(unit), rel=1e-4)
