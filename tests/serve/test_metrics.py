"""Metrics through Ray's exporter."""

from __future__ import annotations

import pytest
from ray.util.metrics import Counter

from raygan.serve.metrics import RayMetrics


def test_labels_of_any_script_are_counted():
    with pytest.raises(UnicodeEncodeError):  # once Ray takes them, labels need no escapes
        Counter("probe", "", ("label",)).inc(1, {"label": "кот"})
    RayMetrics().count("samples", 3, label="кот", outcome="plain")
    RayMetrics().observe("stage_seconds", 0.1, stage="猫", part="waiting")
