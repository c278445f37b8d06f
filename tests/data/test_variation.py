"""Variation: a mean over all pairs, blind to brightness."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from raygan.data import variation
from raygan.data.passes import Passes
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


def test_chunks_are_read_once_whatever_the_number_of_labels():
    photos, chunk = 300, 100
    reads = []

    def pixels(indices: np.ndarray) -> dict[int, np.ndarray]:
        reads.append(len(indices))
        return {index: np.asarray(picture(index, 32)) for index in indices.tolist()}

    about = {"hash": [f"{number:08x}" for number in range(photos)], "reason": pa.nulls(photos, pa.string())}
    labels = [f"{number // 6:03}" for number in range(photos)]
    records = pa.table({**about, "label": labels, "split": ["train"] * photos})
    job = SimpleNamespace(settings=SimpleNamespace(chunk_images=chunk), where=SimpleNamespace(pixels=pixels))
    found = Passes.survey(job, records)
    assert reads == [64] * 3  # of each chunk, the photos with the smallest hashes
    assert list(found) == sorted(set(labels))
    maps = variation.layouts(np.stack([np.asarray(picture(index, 32)) for index in range(6)]))
    assert found["000"] == pytest.approx(variation.variation(maps.sum(axis=0), 6))
    assert found["049"] is None  # its photos have the largest hashes
