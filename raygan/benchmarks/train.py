"""Training under Ray Train beside the bare loop: what the cluster and the streamed shards cost.

Same preset, same photos, one candidate after another in every round, each in fresh processes:

    bare loop   `GanStep` on photos in memory, in one process with a thread per core; writes nothing
    1 worker    the whole of `jobs/train.py` without quality: one worker with all cores
    2 workers   the same, each with half of the cores

All compute on GPUs if the cluster has any, which must be enough for the most workers, so no ratio compares devices.

Images/s run from the first metrics to the last, by the clock, with everything in between. What comes before and after
(processes, imports, shards, the export) stands beside them, as does the peak resident memory of the training process
and its growth since the first metrics. A round's ratios are taken within the round, and their median counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygan import tracking
from raygan.benchmarks.processes import in_process
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import TrainBenchmarkSettings
from raygan.data.shards import DataSet, Split, read_shard
from raygan.errors import ConfigurationError
from raygan.machine import cores
from raygan.models.hardware import keep_freed_memory, peak_resident_bytes
from raygan.runtime import capacity, cluster
from raygan.training.build import new_step
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings
from raygan.training.train import check, train

BARE = "bare loop"

#: Number of metrics in a run; the clock runs from the first to the last.
_LOGS = 10


def benchmark(settings: TrainBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    if not settings.workers or min(settings.workers) < 1:
        raise ConfigurationError("--workers: give numbers of workers, each at least 1")
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="raygan-benchmark-") as folder:
        base = shared_settings(settings, folder)
        check(base)
        tracking.connect(base)
        cluster.connect(base)
        base = on_one_kind_of_device(base, max(settings.workers))
        for number in range(settings.rounds):
            rounds.setdefault(BARE, []).append(apart(base, cores()))
            for workers in settings.workers:
                run = {
                    "num_workers": workers,
                    "cpus_per_worker": max(1.0, cores() / workers),
                    "name": f"{workers}-{number}",
                }
                rounds.setdefault(_named(workers), []).append(under_ray(base, run))
            seen = ", ".join(f"{name} {found[-1]['images_per_second']:.1f}" for name, found in rounds.items())
            print(f"round {number + 1} of {settings.rounds}: {seen} images/s", file=sys.stderr)
    rows = {name: _row(found, rounds) for name, found in rounds.items()}
    for name, row in rows.items():
        against = f"  {row['to_one_worker']:.3f}x one worker" if "to_one_worker" in row else ""
        print(
            f"{name:10} {row['images_per_second']:8.1f} images/s  {row['ratio']:.3f}x bare{against}  "
            f"around it {row['around']:5.1f} s  peak {row['peak_megabytes']:5.0f} MB, "
            f"since the first metrics {row['growth_megabytes']:+.0f} MB"
        )
    result = {"machine": machine(), "settings": base.plain(), "rounds": rounds, "rows": rows}
    write_json(settings.json_file, result)
    return result


def shared_settings(settings: TrainBenchmarkSettings, folder: str) -> TrainSettings:
    """The training to measure, with its records in a temporary folder."""
    names = set(TrainSettings.model_fields)
    values = {name: value for name, value in settings.model_dump().items() if name in names}
    return TrainSettings.model_validate(
        {
            **values,
            "storage": folder,
            "tracking_uri": None,
            "kimg": settings.measure_kimg,
            "minutes": None,
            "log_every": settings.measure_kimg / _LOGS,
            "snapshot_every": settings.measure_kimg,
            "checkpoint_every": settings.measure_kimg,
            "quality_every": 0,
            "promote": False,
        }
    )


def on_one_kind_of_device(base: TrainSettings, most_workers: int) -> TrainSettings:
    """Decide between GPUs and cores once for all numbers of workers, and print it. Needs a connected cluster."""
    gpu = capacity.use_gpus(base.gpu, 1)
    if gpu and (gpus := cluster.total("GPU")) < most_workers:
        raise ConfigurationError(
            f"--workers: {most_workers} workers need a GPU each, and the cluster has {gpus:g}: leave larger numbers out"
        )
    print(f"device: {'a GPU per worker' if gpu else 'cores only'}", flush=True)
    return base.model_copy(update={"gpu": gpu})


def _row(own: list[dict[str, float]], rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians over the rounds, also of the ratios to the bare loop and, if measured, to one worker."""
    rate = "images_per_second"
    row = {name: statistics.median(each[name] for each in own) for name in own[0]}
    for name, other in (("ratio", BARE), ("to_one_worker", _named(1))):
        if other in rounds:
            row[name] = statistics.median(a[rate] / b[rate] for a, b in zip(own, rounds[other], strict=True))
    return row


def _named(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def under_ray(base: TrainSettings, run: dict[str, Any]) -> dict[str, float]:
    """Train with `raygan.training.train`; return images/s, seconds around the loop, and memory."""
    began = time.monotonic()
    done = train(base.model_copy(update=run))
    wall = time.monotonic() - began
    text = Path(base.storage, "runs", run["name"], "metrics.jsonl").read_text(encoding="utf-8")
    records = [record for record in map(json.loads, text.splitlines()) if "minutes" in record]
    first, last = records[0], records[-1]
    rate = (last["images"] - first["images"]) / (60 * (last["minutes"] - first["minutes"]))
    peak = [record["peak_resident_megabytes"] for record in records]
    return {
        "images_per_second": rate,
        "around": wall - 60 * done.last_metrics["minutes"],
        "peak_megabytes": peak[-1],
        "growth_megabytes": peak[-1] - peak[0],
    }


def apart(base: TrainSettings, threads: int) -> dict[str, float]:
    """Run the bare loop in a fresh process; return the same numbers as `under_ray`."""
    began = time.monotonic()
    seconds, found = in_process("the bare loop", bare_loop, base, threads)
    return {**found, "around": time.monotonic() - began - seconds}


def in_memory(data: DataSet, label: str | None, *splits: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """All photos of the splits, uint8 (n, 3, S, S), and their class numbers (n,)."""
    shards = [shard for split in splits for shard in data.shards(split, label)]
    blocks = [read_shard(data.address, data.manifest, shard, label) for shard in shards]
    photos, classes = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*blocks, strict=True))
    return photos, classes


def bare_loop(settings: TrainSettings, threads: int) -> tuple[float, dict[str, float]]:
    """Train on photos in memory; return the seconds in the loop and the numbers measured in it."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the workers do, so that only Ray makes a difference
    data = DataSet.open(settings.data)
    photos, classes = in_memory(data, settings.label, "train")
    device = torch.device("cuda" if settings.gpu else "cpu")
    schedule = Schedule.of(settings, len(photos), settings.batch_size)
    labels = tuple(data.manifest.classes) if settings.conditional else ()
    step = new_step(settings, schedule, labels, device)
    began = time.monotonic()
    first: tuple[int, float, float] | None = None
    memory = 0.0
    while step.images_seen < schedule.total:
        rows = torch.randint(len(photos), (settings.batch_size,))
        terms = step.step(photos[rows], classes[rows])
        if step.images_seen % schedule.log.images == 0:
            float(terms["critic_loss"])  # waits for the device
            memory = peak_resident_bytes() / 2**20
            first = first or (step.images_seen, time.monotonic(), memory)
    float(terms["critic_loss"])  # the last batch needn't end with a log
    now = time.monotonic()
    images, since, at_first = first or (0, began, memory)
    rate = (step.images_seen - images) / (now - since)
    return now - began, {
        "images_per_second": rate,
        "peak_megabytes": memory,
        "growth_megabytes": memory - at_first,
    }
