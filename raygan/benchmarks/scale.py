"""How training and `prepare` scale over workers of this machine, and a model of training beyond it.

Measured with one core per worker (or a GPU, if there is one for each). For training, the numbers of workers take turns
in every round; `prepare` runs in one Ray cluster after another, each with that number of cores:

    train, strong     one global batch shared by the workers
    train, weak       the same batch for every worker
    prepare, strong   the same photos for each number of cores
    prepare, weak     the same number of photos per core

An efficiency is the speed divided by that of one worker and by the number of workers; the median of the rounds counts.
The model is `raygan.benchmarks.scale_model`'s. With `--photos`, `raygan.benchmarks.reading` measures instead.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from raygan import tracking
from raygan.addresses import is_remote
from raygan.benchmarks import reading
from raygan.benchmarks.prepare import repeat
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.scale_model import LINKS, MOST, WORTH, Cost, line_through, measure_gloo, messages
from raygan.benchmarks.settings import ScaleBenchmarkSettings
from raygan.benchmarks.train import apart, on_one_kind_of_device, shared_settings, under_ray
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError
from raygan.machine import cores
from raygan.runtime import cluster
from raygan.training.build import new_step
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings
from raygan.training.train import check

#: For the seconds of a batch: roughly how many batches between two metrics, and how many metrics.
_TURN_BATCHES, _TURNS = 12, 6


def benchmark(settings: ScaleBenchmarkSettings) -> dict[str, Any]:
    """Measure, print tables, write JSON if asked, and return the numbers."""
    if settings.photos:
        return _read(settings)
    if not settings.workers or min(settings.workers) < 1:
        raise ConfigurationError("--workers: give numbers of workers, each at least 1")
    if max(settings.workers) > cores():
        raise ConfigurationError(
            f"--workers: {max(settings.workers)} workers need a core each, and there are {cores()} cores"
        )
    if 1 not in settings.workers:
        raise ConfigurationError("--workers: include 1, which efficiencies refer to")
    with tempfile.TemporaryDirectory(prefix="raygan-benchmark-") as folder:
        base = shared_settings(settings, folder)
        check(base)
        tracking.connect(base)
        rates = _measure_prepare(settings, folder) if settings.input else {}
        cluster.connect(base)
        base = on_one_kind_of_device(base, max(settings.workers))
        rates |= _measure_training(settings, base)
    rows = {what: _row(by_workers) for what, by_workers in rates.items()}
    for what, row in rows.items():
        for workers, (rate, efficiency) in row.items():
            print(f"{what:16} {workers:3} workers {rate:8.1f} images/s  efficiency {efficiency:.2f}", flush=True)
    result = {"machine": machine(), "settings": base.plain(), "rows": rows}
    write_json(settings.json_file, result)
    result["model"] = _model(base, rows)
    write_json(settings.json_file, result)
    return result


def _read(settings: ScaleBenchmarkSettings) -> dict[str, Any]:
    """Measure reading, see `raygan.benchmarks.reading`. The links are made beside the shards: on their disk."""
    if min(settings.photos) < 1 or is_remote(settings.data):
        raise ConfigurationError("--photos: give numbers of at least 1, and --data on a local disk")
    data = DataSet.open(settings.data)
    with tempfile.TemporaryDirectory(prefix=".raygan-links-", dir=os.path.dirname(settings.data)) as folder:
        rows = reading.measure(data, settings.photos, Path(folder), settings.data_memory, settings.reading)
    result = {"machine": machine(), "rows": rows}
    write_json(settings.json_file, result)
    return result


def _row(by_workers: dict[int, list[float]]) -> dict[int, tuple[float, float]]:
    """Images/s and efficiency by number of workers."""
    alone = by_workers[1]
    return {
        workers: (
            statistics.median(rates),
            statistics.median(rate / (workers * one) for rate, one in zip(rates, alone, strict=True)),
        )
        for workers, rates in by_workers.items()
    }


def _measure_training(settings: ScaleBenchmarkSettings, base: TrainSettings) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {"train, strong": {}, "train, weak": {}}
    for number, workers in itertools.product(range(settings.rounds), settings.workers):
        for what, by_workers in found.items():
            batch = base.batch_size * (workers if what == "train, weak" else 1)
            if workers == 1 and what == "train, weak":
                by_workers.setdefault(1, []).append(found["train, strong"][1][-1])
                continue
            name = f"{what.replace(', ', '-')}-{workers}-{number}"
            run = {"num_workers": workers, "cpus_per_worker": 1.0, "batch_size": batch, "name": name}
            by_workers.setdefault(workers, []).append(under_ray(base, run)["images_per_second"])
    return found


def _measure_prepare(settings: ScaleBenchmarkSettings, folder: str) -> dict[str, dict[int, list[float]]]:
    """Images/s by number of cores, each in its own Ray cluster, whose processes start before the clock."""
    found: dict[str, dict[int, list[float]]] = {"prepare, strong": {}, "prepare, weak": {}}
    photos = {workers: os.path.join(folder, f"photos-{workers}") for workers in settings.workers}
    for workers, place in photos.items():
        repeat(settings.input, place, workers * settings.prepare_photos)
    for workers in settings.workers:
        ray.init(address="local", num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        try:
            _prepared(folder, photos[1], settings)
            for _ in range(settings.rounds):
                strong = settings.prepare_photos / _prepared(folder, photos[1], settings)
                found["prepare, strong"].setdefault(workers, []).append(strong)
                seconds = _prepared(folder, photos[workers], settings) if workers > 1 else 0.0
                weak = workers * settings.prepare_photos / seconds if seconds else strong
                found["prepare, weak"].setdefault(workers, []).append(weak)
        finally:
            ray.shutdown()
    return found


def _prepared(folder: str, photos: str, settings: ScaleBenchmarkSettings) -> float:
    """Seconds to prepare the photos. They are repeated, so the filters against duplicates are off."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        began = time.perf_counter()
        prepare(
            PrepareSettings(
                input=[photos],
                output=os.path.join(output, "shards"),
                storage=folder,
                tracking_uri=None,
                image_size=settings.image_size,
                skip=["duplicate", "near_duplicate", "outlier"],
            )
        )
        return time.perf_counter() - began


def _model(base: TrainSettings, rows: dict[str, dict[int, tuple[float, float]]]) -> dict[str, Any]:
    """Fit the model, print it, and return its numbers."""
    batches = sorted({max(1, base.batch_size // part) for part in (1, 2, 4, 8)})
    seconds = {batch: _batch_seconds(base, batch) for batch in batches}
    step = new_step(base, Schedule.of(base, base.batch_size, base.batch_size))
    cost = Cost(*line_through(seconds), *messages(step))
    here = measure_gloo()
    print(
        f"model: {1e3 * cost.fixed:.1f} ms and {1e3 * cost.slope:.2f} ms an image for a batch on one "
        f"{'GPU' if base.gpu else 'core'}; gradients of {cost.critic_bytes / 1e6:.2f} MB (critic) and "
        f"{cost.generator_bytes / 1e6:.2f} MB (generator); "
        f"gloo here {8e-9 * here.bandwidth:.1f} Gbit/s, {1e6 * here.latency:.0f} us a message"
    )
    checked: dict[str, dict[str, float]] = {}
    for what, row in rows.items():
        if what.startswith("train") and 2 in row:
            predicted = cost.efficiency(2, base.batch_size, here, weak=what.endswith("weak"))
            checked[what] = {"predicted": predicted, "measured": row[2][1]}
            print(f"model, {what}, 2 workers: efficiency {predicted:.2f} by the model, {row[2][1]:.2f} measured")
    ends: dict[str, dict[str, int]] = {}
    for name, link in LINKS.items():
        ends[name] = {way: cost.most_workers(base.batch_size, link, weak=way == "weak") for way in ("strong", "weak")}
        most = ", ".join(f"{workers}{'+' * (workers == MOST)} {way}" for way, workers in ends[name].items())
        print(f"model, {name}: workers at an efficiency of {WORTH} or more: {most}")
    return {
        "cost": asdict(cost),
        "batch_seconds": seconds,
        "gloo": asdict(here),
        "two_workers": checked,
        "most_workers": ends,
    }


def _batch_seconds(base: TrainSettings, batch: int) -> float:
    """Seconds of a batch of reals in one process on a worker's device, with its share of generator steps."""
    # Whole turns of generator steps and lazy penalties between two metrics; the first metrics start the clock.
    turn = math.lcm(base.n_critic, base.penalty_every)
    log = turn * max(1, round(_TURN_BATCHES / turn)) * batch / 1000
    bare = base.model_copy(update={"batch_size": batch, "kimg": _TURNS * log, "log_every": log})
    return batch / apart(bare, 1)["images_per_second"]
