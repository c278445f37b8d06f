"""Variation: a mean over all pairs, blind to brightness."""

from __future__ import annotations

import numpy as np
import pytest

from raygan.data import variation
from tests.data.messy import picture


def test_variation_is_the_mean_over_all_pairs():
    pixels = np.stack([np.asarray(picture(seed, 64)) for seed in range(12)])
    maps = variation.layouts(pixels)
    between = (maps @ maps.T)[np.triu_indices(12, 1)]
    assert variation.variation(maps.sum(axis=0), 12) == pytest.approx(1 - between.mean(), abs=1e-5)


def test_variation_tells_different_layouts_apart_but_not_bright_from_dark():
    alike = np.stack([np.asarray(picture(1, 64))] * 6)
    dimmed = (alike * np.linspace(0.5, 1, 6)[:, None, None, None]).astype(np.uint8)
    different = np.stack([np.asarray(picture(seed, 64)) for seed in range(30)])

    def of(pixels: np.ndarray) -> float | None:
        return variation.variation(variation.layouts(pixels).sum(axis=0), len(pixels))

    assert of(alike) == pytest.approx(0, abs=1e-5)
    assert of(dimmed) < 0.2
    assert of(different) > 0.95
    assert of(different[:1]) is None
