"""A package adds a metric to the report card."""

from __future__ import annotations

import json
from pathlib import Path

from raygan.models.gan import NetworkSettings, build_generator, save_generator
from tests.helpers import finish_job, make_package

TOY = '''
from raygan.metrics.registry import Metric

def move(sets):
    """How far the mean of the features moved, and the error of that."""
    deviation = sets.fake.std(0) / len(sets.fake) ** 0.5
    return float((sets.fake.mean(0) - sets.real.mean(0)).norm()), float(deviation.norm())

SHIFT = Metric(move, "lower", "distance <between> the means")
LOST = Metric(lambda sets: float("nan"), None, "nothing")
'''


def test_a_packages_metric_is_in_the_record_and_on_the_page(packages, installed, new_storage, write_shards, tmp_path):
    make_package(packages, "toy", TOY, "[raygan.metrics]\nshift = toy:SHIFT\nlost = toy:LOST")
    save_generator(
        tmp_path / "cats", build_generator(NetworkSettings(image_size=32, z_dim=4, width=2)), {"label": "cat"}
    )
    arguments = {"--storage": new_storage, "--data": write_shards(), "--model": tmp_path / "cats", "--samples": 6}
    words = [str(word) for pair in arguments.items() for word in pair]
    job = finish_job("evaluate", *words, "--real-images", "6", "--name", "card", environment=installed)
    assert job.returncode == 0, job.stderr
    scores = json.loads(job.stdout.splitlines()[-1])["metrics"]["cats"]["cat"]
    assert scores["shift6_efficientnet_lite0"] > scores["shift6_efficientnet_lite0_error"] > 0
    folder = Path(new_storage, "reports", "card")
    record = (folder / "report.json").read_text()
    assert json.loads(record)["metrics"]["cats"]["cat"] == scores
    assert "NaN" not in record  # which most parsers of JSON refuse
    assert scores["lost6_efficientnet_lite0"] is None
    page = (folder / "report.html").read_text()
    assert "<td>shift6 ↓</td>" in page
    assert "<dt>shift</dt><dd>distance &lt;between&gt; the means</dd>" in page
    assert "shift with its standard error; lower is better" in page
