"""The table of metrics."""

from __future__ import annotations

import subprocess
import sys

from raygan.metrics.registry import METRICS, Metric


def test_every_name_has_a_metric_with_a_meaning():
    for name, metric in METRICS.items():
        assert isinstance(metric, Metric), name
        assert metric.meaning


def test_names_are_listed_without_torch():
    code = "import sys; from raygan.metrics.registry import METRICS; METRICS.names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
