"""A search beside the same trainings run one after another: what Ray Tune costs.

Both train the same settings for the same number of images and measure KID as often, one training at a time, none
stopped early. The search also draws its report; each single training registers its model, as trainings do. A short
training before the clock fills caches. Everything goes to a temporary storage folder.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from raygan import tracking
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import TuneBenchmarkSettings
from raygan.runtime import cluster
from raygan.training.train import train
from raygan.tuning.space import parse_space, settings_of
from raygan.tuning.tune import trial_base, tune

#: Length of the training before the clock, in thousands of images.
_WARM_KIMG = 0.5


def benchmark(settings: TuneBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    with tempfile.TemporaryDirectory(prefix="raygan-benchmark-") as folder:
        plain = {"storage": folder, "tracking_uri": None, "scheduler": "none", "concurrent": 1, "train_best": False}
        settings = settings.model_copy(update={**plain, "name": "search"})
        base = trial_base(settings)
        axes = parse_space(settings.space, base)
        cluster.connect(settings)
        train(base.model_copy(update={"kimg": _WARM_KIMG, "quality_every": _WARM_KIMG, "name": "warm"}))

        start = time.monotonic()
        found = tune(settings)
        searched = time.monotonic() - start
        client = tracking.connect(settings)
        parent = client.get_run(found.run_id)
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.run_id}'", max_results=settings.trials
        )
        points = [{axis.name: child.data.params[axis.name] for axis in axes} for child in children]

        start = time.monotonic()
        for number, point in enumerate(points):
            train(settings_of(base, point).model_copy(update={"name": f"single-{number}"}))
        alone = time.monotonic() - start
    print(f"\n{len(points)} trainings of {settings.trial_kimg:g} kimg, one at a time")
    print(f"  one after another  {alone:7.1f} s")
    print(f"  as a search        {searched:7.1f} s   {searched / alone - 1:+.1%}")
    result = {
        "machine": machine(),
        "settings": settings.plain(),
        "trainings": len(points),
        "one_after_another_seconds": alone,
        "search_seconds": searched,
    }
    write_json(settings.json_file, result)
    return result
