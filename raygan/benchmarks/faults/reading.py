"""The drill of reading: a node is lost while workers on all cores read more photos than fit in its object store."""

from __future__ import annotations

import random
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygan.benchmarks.faults.harness import Stage
from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.faults.outcome import Outcome
from raygan.data.batches import BatchStream
from raygan.data.photos import Photos, open_photos
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet, Manifest, ShardFile, write_shard
from raygan.models.distributed import Share
from raygan.runtime import capacity

#: Shards, and bytes of pixels in each: 126 MB in all.
_SHARDS, _BYTES = 32, 320 * 3 * 64**2

#: Bytes of each node's object store (Ray's minimum), and GB of photos that may be in the stores at a time.
STORE, MEMORY = 80_000_000, 0.06

#: Batches in all, images in each, and the first and last after which the node may be lost.
_BATCHES, _IMAGES, _FROM, _TO = 150, 64, 10, 60


class _Worker:
    """A worker that holds a core and reads its rows of each batch."""

    def __init__(self, photos: Photos, share: Share, start: int):
        self._stream = BatchStream(photos, _IMAGES, 1, share).starting_at(start)

    def next(self) -> int:
        """A checksum of its rows of the next batch."""
        return _digest(next(self._stream)[0].numpy())


def _digest(pixels: np.ndarray) -> int:
    """Sum of the rows' checksums, so that a batch's digest is the sum of its parts'."""
    return sum(zlib.crc32(row.tobytes()) for row in pixels)


def lose_node_reading(stage: Stage) -> Outcome:
    """Kill one of two nodes, each with a worker, and go on with one worker at the same batch."""
    data = draw_noise(stage.folder / "many-shards", 64)
    fault = random.randint(_FROM, _TO)
    with stage.nodes(1, 1, store=STORE) as nodes:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        try:
            return _read(nodes, data, fault)
        finally:
            ray.shutdown()


def _read(nodes: Nodes, data: DataSet, fault: int) -> Outcome:
    photos = load_photos(data, "train", None, MEMORY)
    # Read from storage by a worker without the object store.
    here = Photos(photos.rows, open_photos(data, "train", None).source, photos.mixed)
    wanted_from = _place(here, Share(), 0, nodes.ids[0], cores=0)
    workers = [_place(photos, Share(rank, 2), 0, node, cores=1) for rank, node in enumerate(nodes.ids)]
    right, back_after = True, 0.0
    for batch in range(_BATCHES):
        began = time.monotonic()
        if batch == fault:
            taken = capacity.free_cores() == 0
            nodes.kill_last()
            ray.kill(workers[0])
            workers = [_place(photos, Share(), batch, nodes.ids[0], cores=1)]
        found = sum(ray.get([worker.next.remote() for worker in workers]))
        if batch == fault:
            back_after = time.monotonic() - began
        right = right and found == ray.get(wanted_from.next.remote())
    return Outcome(
        {"every batch as without the fault": right, "the workers hold all cores": taken},
        back_after=back_after,
        again=0,
        notes=[
            f"{_SHARDS * _BYTES / 1e6:.0f} MB of photos, stores of {STORE / 1e6:.0f} MB, lost after {fault} batches"
        ],
    )


def _place(photos: Photos, share: Share, start: int, node: str, cores: int) -> ray.actor.ActorHandle:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_Worker).options(num_cpus=cores, scheduling_strategy=place).remote(photos, share, start)


def draw_noise(folder: Path, size: int) -> DataSet:
    """Write shards of noise with `size` px a side, more than fit in a node's store."""
    noise, rows = np.random.default_rng(0), _BYTES // (3 * size**2)
    shards = []
    for number in range(_SHARDS):
        name = f"train-{number:05d}.parquet"
        about = pa.table({"label": ["cat"] * rows, "path": [""] * rows, "hash": [""] * rows})
        pixels = noise.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
        write_shard(str(folder), name, pixels, about, "train", "raw")
        shards.append(ShardFile(file=name, split="train", rows={"cat": rows}))
    manifest = Manifest(image_size=size, classes=["cat"], shards=shards, fingerprint="noise", configuration={})
    manifest.write(str(folder))
    return DataSet(str(folder), manifest)
