"""How reading grows: data sets of any number of photos, made of hard links to the shards of a small one.

For each number of photos:

    first step     seconds from a training worker's start to the end of its first step, pictures included
    memory         most MB of the driver and of the training worker that are their own, apart from the object store,
                   which `--data-memory` bounds
    reading alone  images/s of 1, 2 and 4 readers that do nothing else, and images per second of a core's time, all of
                   Ray's processes counted
    between nodes  bytes per image that readers fetch from another node's store, on 1, 2 and 4 Ray nodes of this machine

The shards should be in the page cache, as those of a small data set are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygan.benchmarks.faults.harness import Nodes
from raygan.benchmarks.results import checkout
from raygan.data.batches import BatchStream
from raygan.data.photos import Photos
from raygan.data.reader import SharedShards, load_photos
from raygan.data.shards import MANIFEST, DataSet, ShardFile, Stored
from raygan.errors import RayganError
from raygan.models.distributed import Share

#: Batches that a training takes, and that readers read after those that warm them up; images in each of them.
_STEPS, _WARM, _BATCHES, _IMAGES = 4, 20, 300, 256

#: Readers, and nodes, that are measured.
READERS = (1, 2, 4)

_WORKER = "ray::RayTrainWorker"


def linked(data: DataSet, photos: int, folder: Path) -> DataSet:
    """A data set of at least so many training photos, whose shards are hard links to those of another."""
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
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return DataSet(str(folder), manifest)


def first_step(data: DataSet, folder: Path, memory: float | None) -> dict[str, float]:
    """Train for a few steps; seconds to the first, and memory."""
    size = str(data.manifest.image_size)
    kimg = f"{_STEPS * _IMAGES / 1000:g}"
    command = [sys.executable, str(checkout() / "jobs" / "train.py"), "--data", data.address, "--preset", "quick"]
    command += ["--image-size", size, "--width", "4", "--batch-size", str(_IMAGES), "--kimg", kimg, "--quality-every"]
    command += ["0", "--log-every", f"{_IMAGES / 1000:g}", "--no-promote", "--storage", str(folder), "--name", "run"]
    command += ["--data-memory", f"{memory:g}"] if memory is not None else []
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = {"driver": 0.0, "worker": 0.0}
    while job.poll() is None:
        workers = [each for each in psutil.process_iter(["name", "cmdline"]) if _is_worker(each)]
        for name, processes in (("driver", [psutil.Process(job.pid)]), ("worker", workers)):
            most[name] = max([most[name], *map(_own_megabytes, processes)])
        time.sleep(0.2)
    if job.returncode:
        raise RayganError(f"the training failed: {(job.stderr.read() if job.stderr else '').strip()[-300:]}")
    lines = (folder / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = next(record for record in map(json.loads, lines) if "minutes" in record)
    return {"first_step_seconds": 60 * first["minutes"], **{f"{name}_megabytes": value for name, value in most.items()}}


def _is_worker(process: psutil.Process) -> bool:
    return any(str(part).startswith(_WORKER) for part in process.info["cmdline"] or [])


def _own_megabytes(process: psutil.Process) -> float:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return float(memory.rss - memory.shared) / 1e6


class _Counted:
    """Shards of a reader that counts the bytes it fetches from other nodes."""

    def __init__(self, shards: SharedShards):
        self._shards = shards
        self.fetched = 0

    def read(self, number: int) -> Stored:
        return self._shards.read(number)

    def fetch(self, numbers: Sequence[int]) -> list[Stored]:
        node = ray.get_runtime_context().get_node_id()
        refs = ray.get(self._shards.reader.blocks.remote(list(numbers), node))
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
    started = Nodes(checkout(), *[1] * nodes)
    try:
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        photos = load_photos(data, "train", None, memory)
        actors = []
        for rank in range(readers):
            place = NodeAffinitySchedulingStrategy(started.ids[rank * nodes // readers], soft=False)
            actor = ray.remote(_Reader).options(num_cpus=0, scheduling_strategy=place)
            actors.append(actor.remote(photos, Share(rank, readers)))
        before = sum(ray.get([actor.read.remote(_WARM) for actor in actors]))
        began, used = time.perf_counter(), _core_seconds()
        fetched = sum(ray.get([actor.read.remote(_BATCHES) for actor in actors])) - before
        seconds, used = time.perf_counter() - began, _core_seconds() - used
    finally:
        ray.shutdown()
        started.stop()
    images = _BATCHES * _IMAGES
    return {
        "images_per_second": images / seconds,
        "images_per_core_second": images / used,
        "bytes_per_image_between_nodes": fetched / images,
    }


def _core_seconds() -> float:
    """Seconds of cores that this process and all below it have used."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure(data: DataSet, counts: Sequence[int], folder: Path, memory: float | None) -> dict[str, dict[str, Any]]:
    """Measure each number of photos, printing as it goes."""
    rows: dict[str, dict[str, Any]] = {}
    for count in counts:
        large = linked(data, count, folder / f"photos-{count}")
        row: dict[str, Any] = first_step(large, folder / f"storage-{count}", memory)
        rows[str(count)] = row
        print(
            f"{count:12,} photos  first step after {row['first_step_seconds']:5.1f} s  "
            f"driver {row['driver_megabytes']:6.0f} MB  worker {row['worker_megabytes']:6.0f} MB",
            flush=True,
        )
    largest = DataSet.open(str(folder / f"photos-{max(counts)}"))
    for readers in READERS:
        for nodes in {1, readers}:
            row = read_alone(largest, readers, nodes, memory)
            rows[f"{readers} readers, {nodes} nodes"] = row
            print(
                f"{readers} readers on {nodes} nodes  {row['images_per_second']:8.0f} images/s  "
                f"{row['images_per_core_second']:8.0f} images per core's second  "
                f"{row['bytes_per_image_between_nodes'] / 1e3:6.1f} kB per image between nodes",
                flush=True,
            )
    return rows
