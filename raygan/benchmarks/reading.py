"""How reading grows: data sets of any number of photos, made of hard links to the shards of a small one.

For each number of photos:

    first step     seconds from a training worker's start to the end of its first step, pictures included
    memory         peak private MB of the driver and of the training worker, apart from the object store,
                   which `--data-memory` bounds
    bounded        images/s of a training whose data is five times its `--data-memory`, beside one whose data fits,
                   after the first epoch, in which both read storage: waits for shards count, pictures don't
    reading alone  images/s of 1, 2 and 4 readers that do nothing else, and images per second of a core's time, all of
                   Ray's processes counted, once the object store's memory has been in use
    between nodes  bytes per image that readers fetch from another node's store, on 1, 2 and 4 Ray nodes of this machine

    Ray Data       `raygan.benchmarks.reading_peers`

The shards should be in the page cache, as those of a small data set are.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from raygan.benchmarks import reading_peers
from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.processes import cpu_seconds, own_megabytes
from raygan.benchmarks.results import checkout
from raygan.benchmarks.settings import ReadingPart
from raygan.data.batches import BatchStream
from raygan.data.photos import SHARDS_MIXED, Photos
from raygan.data.reader import SharedShards, load_photos
from raygan.data.shards import DataSet, ShardFile, Stored
from raygan.errors import RayganError
from raygan.models.distributed import Share

#: Batches that a training takes, and that readers read after warming up; images in each of them.
_STEPS, _BATCHES, _IMAGES = 4, 300, 256

#: Groups of shards that warm readers up: the object store's memory costs a page fault every 4 kB when it is first used.
_WARM = 4

#: Size of the bounded training's data over its bound; rounds of the trainings, their steps after the first epoch, and
#: steps between metrics.
_TIMES, _ROUNDS, _LONG, _LOG = 5, 2, 25, 5

#: Minimum bytes of each node's object store; with large groups of shards, it takes three of them.
_STORE = 200_000_000

#: Readers, and nodes, that are measured.
READERS = (1, 2, 4)

_WORKER = "ray::RayTrainWorker"


def linked(data: DataSet, photos: int, folder: Path) -> DataSet:
    """A data set of at least `photos` training photos, whose shards are hard links to those of another."""
    folder.mkdir()
    shards = data.shards("train")
    held_out = data.shards("validation")
    for shard in held_out:
        os.link(Path(data.address, shard.file), folder / shard.file)
    found: list[ShardFile] = []
    count = 0
    while count < photos:
        shard = shards[len(found) % len(shards)]
        name = f"train-{len(found):06d}.parquet"
        os.link(Path(data.address, shard.file), folder / name)
        found.append(ShardFile(file=name, split="train", rows=shard.rows))
        count += sum(shard.rows.values())
    manifest = data.manifest.model_copy(update={"shards": [*found, *held_out], "fingerprint": f"linked-{photos}"})
    manifest.write(str(folder))
    return DataSet(str(folder), manifest)


def first_step(data: DataSet, folder: Path, memory: float | None) -> dict[str, float]:
    """Train for a few steps; seconds to the first, and memory."""
    records, most = _train(data, folder, memory, steps=_STEPS, log=1)
    return {"first_step_seconds": 60 * records[0]["minutes"], **most}


def bounded(data: DataSet, folder: Path) -> dict[str, float]:
    """Images/s of trainings whose data fits the memory bound, and of some whose data is five times the bound.

    They take turns; the medians of the rounds count.
    """
    enough = data.manifest.count("train") * 3 * data.manifest.image_size**2 / 1e9
    bounds = {"fitting": 1.01 * enough, "bounded": enough / _TIMES}
    speeds: dict[str, list[float]] = {name: [] for name in bounds}
    steps = data.manifest.count("train") // _IMAGES + _LONG
    turns = [(number, name) for number in range(_ROUNDS) for name in bounds]
    for number, name in tqdm(turns, desc="trainings", unit="training"):
        records, _ = _train(data, folder / f"{name}-{number}", bounds[name], steps=steps, log=_LOG)
        speeds[name].append(speed(records))
    ratios = [one / other for one, other in zip(speeds["bounded"], speeds["fitting"], strict=True)]
    fitting, others, ratio = map(statistics.median, (speeds["fitting"], speeds["bounded"], ratios))
    return {"fitting_images_per_second": fitting, "images_per_second": others, "ratio": ratio}


def speed(records: Sequence[dict[str, Any]]) -> float:
    """Images/s of a training after its first epoch, from its metrics."""
    first, *_, last = [record for record in records if record["epoch"] >= 1]
    return float((last["images"] - first["images"]) / (60 * (last["minutes"] - first["minutes"])))


def _train(
    data: DataSet, folder: Path, memory: float | None, *, steps: int, log: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train a tiny network; the metrics, every `log` steps, and the most memory of the driver and the worker.

    Pictures and checkpoints come at the end only.
    """
    size = str(data.manifest.image_size)
    command = [sys.executable, str(checkout() / "jobs" / "train.py"), "--data", data.address, "--preset", "quick"]
    command += ["--image-size", size, "--width", "4", "--batch-size", str(_IMAGES), "--quality-every", "0"]
    kimg = f"{steps * _IMAGES / 1000:g}"
    command += ["--kimg", kimg, "--snapshot-every", kimg, "--checkpoint-every", kimg, "--no-promote"]
    command += ["--log-every", f"{log * _IMAGES / 1000:g}"]
    command += ["--storage", str(folder), "--name", "run"]
    command += ["--data-memory", f"{memory:g}"] if memory is not None else []
    most = {"driver_megabytes": 0.0, "worker_megabytes": 0.0}
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would fill and stop the training
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while job.poll() is None:
            workers = [each for each in psutil.process_iter(["cmdline"]) if _is_worker(each)]
            for name, processes in (("driver_megabytes", [psutil.Process(job.pid)]), ("worker_megabytes", workers)):
                most[name] = max([most[name], *map(own_megabytes, processes)])
            time.sleep(0.2)
        if job.returncode:
            said.seek(0)
            raise RayganError(f"the training failed: {said.read().strip()[-300:]}")
    lines = (folder / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "minutes" in record], most


def _is_worker(process: psutil.Process) -> bool:
    return any(str(part).startswith(_WORKER) for part in process.info["cmdline"] or [])


class _Counted:
    """Shards of a reader that counts the bytes it fetches from other nodes."""

    def __init__(self, shards: SharedShards):
        self._shards = shards
        self.fetched = 0

    def read(self, number: int) -> Stored:
        return self._shards.read(number)

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        node = ray.get_runtime_context().get_node_id()
        refs = ray.get(self._shards.reader.blocks.remote(list(numbers), node, [self._shards.held]))
        places = ray.experimental.get_object_locations(refs)
        self.fetched += sum(places[ref]["object_size"] for ref in refs if node not in places[ref]["node_ids"])
        return [*ray.get(refs)]


class _Reader:
    """Reads its rows of each batch, and does nothing else."""

    def __init__(self, photos: Photos, share: Share):
        assert isinstance(photos.source, SharedShards)  # noqa: S101 - for mypy
        self._counted = _Counted(photos.source)
        photos = Photos(photos.rows, self._counted, photos.mixed)
        self._batches = BatchStream(photos, _IMAGES, 0, share).starting_at(0)

    def read(self, batches: int) -> int:
        """Read batches; the bytes fetched from other nodes so far."""
        for _ in range(batches):
            next(self._batches)
        return self._counted.fetched


def read_alone(data: DataSet, readers: int, nodes: int, memory: float | None) -> dict[str, float]:
    """Images/s of readers, spread over nodes; images per second of a core; bytes per image between nodes."""
    group = 3 * data.manifest.image_size**2 * int(data.counts("train").sum(axis=1)[:SHARDS_MIXED].sum())
    started = Nodes(checkout(), *[1] * nodes, store=max(_STORE, 3 * group))
    try:
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        photos = load_photos(data, "train", None, memory)
        actors = []
        for rank in range(readers):
            place = NodeAffinitySchedulingStrategy(started.ids[rank * nodes // readers], soft=False)
            actor = ray.remote(_Reader).options(num_cpus=0, scheduling_strategy=place)
            actors.append(actor.remote(photos, Share(rank, readers)))
        warm = -(-_WARM * sum(photos.rows[: photos.mixed]) // _IMAGES)
        before = sum(ray.get([actor.read.remote(warm) for actor in actors]))
        began, used = time.perf_counter(), cpu_seconds()
        fetched = sum(ray.get([actor.read.remote(_BATCHES) for actor in actors])) - before
        seconds, used = time.perf_counter() - began, cpu_seconds() - used
    finally:
        ray.shutdown()
        started.stop()
    images = _BATCHES * _IMAGES
    return {
        "images_per_second": images / seconds,
        "images_per_core_second": images / used,
        "bytes_per_image_between_nodes": fetched / images,
    }


def measure(
    data: DataSet, counts: Sequence[int], folder: Path, memory: float | None, parts: Sequence[ReadingPart]
) -> dict[str, dict[str, Any]]:
    """Measure each number of photos, printing as it goes.

    Args:
        data: the small data set.
        counts: numbers of photos.
        folder: for links, on the disk of the shards.
        memory: `--data-memory` of trainings and readers, GB.
        parts: what to measure.
    """
    sets = {count: linked(data, count, folder / f"photos-{count}") for count in sorted(counts)}
    smallest, largest = sets[min(counts)], sets[max(counts)]
    rows: dict[str, dict[str, Any]] = {}
    if "first-step" in parts:
        rows |= _first_steps(sets, folder, memory)
    if "bounded" in parts:
        rows["bounded"] = row = bounded(smallest, folder / "bounded")
        print(
            f"data {_TIMES} times the memory bound: {row['images_per_second']:.0f} images/s, "
            f"{row['ratio']:.2f} times those of data that fits",
            flush=True,
        )
    if "alone" in parts:
        rows |= _readers(largest, memory)
    if "ray-data" in parts:
        rows |= reading_peers.compare(smallest)
    return rows


def _first_steps(sets: dict[int, DataSet], folder: Path, memory: float | None) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for count, data in sets.items():
        rows[str(count)] = row = first_step(data, folder / f"storage-{count}", memory)
        print(
            f"{count:12,} photos  first step after {row['first_step_seconds']:5.1f} s  "
            f"driver {row['driver_megabytes']:6.0f} MB  worker {row['worker_megabytes']:6.0f} MB",
            flush=True,
        )
    return rows


def _readers(data: DataSet, memory: float | None) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    cases = [(readers, nodes) for readers in READERS for nodes in sorted({1, readers})]
    for readers, nodes in tqdm(cases, desc="readers", unit="case"):
        rows[f"{readers} readers, {nodes} nodes"] = row = read_alone(data, readers, nodes, memory)
        tqdm.write(
            f"{readers} readers on {nodes} nodes  {row['images_per_second']:8.0f} images/s  "
            f"{row['images_per_core_second']:8.0f} images per core's second  "
            f"{row['bytes_per_image_between_nodes'] / 1e3:6.1f} kB per image between nodes"
        )
        sys.stdout.flush()
    return rows
