"""Reading the same shards with Ray Data beside raygan's actors.

Both start a local Ray in a fresh process and read batches of an epoch's shuffled shards, decoded to uint8 tensors:

    raygan               `BatchStream` over `load_photos`: photos shuffled within groups of 64 shards; batch k is a
                         function of the seed and k, so a rank reads its rows alone, and resuming is a seek
    Ray Data             `read_parquet` of the shards in the same order, `iter_torch_batches` with the order kept;
                         photos come in file order, and resuming reads again what was read before
    Ray Data, shuffled   the same with a buffer for shuffling as large as a group
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch

from raygan.benchmarks.processes import in_process, own_megabytes
from raygan.data.arrow import whole
from raygan.data.batches import BatchStream
from raygan.data.photos import SHARDS_MIXED
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.machine import cores
from raygan.models.distributed import Share

#: Batches that are read after the first, and images in each.
_BATCHES, _IMAGES = 150, 256

#: Seconds between two looks at memory.
_LOOK_EVERY = 0.5


def _ours(data: DataSet) -> Iterator[torch.Tensor]:
    for pixels, _ in BatchStream(load_photos(data, "train", None), _IMAGES, 0, Share()).starting_at(0):
        yield pixels


def _ray_data(data: DataSet, *, shuffled: bool) -> Iterator[torch.Tensor]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options.preserve_order = True
    shards = data.shards("train")
    order = np.random.default_rng(0).permutation(len(shards))
    files = [os.path.join(data.address, shards[number].file) for number in order.tolist()]
    size = data.manifest.image_size
    rows = sum(data.counts("train").sum(axis=1)[order[:SHARDS_MIXED]].tolist())
    decoded = ray.data.read_parquet(files, columns=["image", "label"]).map_batches(
        _decode, fn_kwargs={"size": size}, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    while True:
        batches = decoded.iter_torch_batches(
            batch_size=_IMAGES,
            prefetch_batches=2,
            local_shuffle_buffer_size=rows if shuffled else None,
            local_shuffle_seed=0 if shuffled else None,
        )
        for batch in batches:
            yield batch["image"]


def _decode(table: pa.Table, size: int) -> dict[str, np.ndarray]:
    images = whole(table["image"])
    pixels = np.frombuffer(images.buffers()[1], np.uint8)[images.offset * 3 * size**2 :]
    _, classes = np.unique(table["label"].to_numpy(), return_inverse=True)
    return {"image": pixels[: len(images) * 3 * size**2].reshape(-1, size, size, 3), "label": classes}


_WAYS = {
    "raygan": _ours,
    "Ray Data": lambda data: _ray_data(data, shuffled=False),
    "Ray Data, shuffled": lambda data: _ray_data(data, shuffled=True),
}


def read(way: str, address: str) -> dict[str, float]:
    """Read batches one way, in this process and Ray's below it.

    Args:
        way: a key of the table above.
        address: of the shards, which are raw.

    Returns:
        Seconds to the first batch once Ray has started, images/s after it, and the peak private memory of all
        processes, in MB.
    """
    ray.init(address="local", num_cpus=cores(), log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    before, most, done = _megabytes(), 0.0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(_LOOK_EVERY):
            most = max(most, _megabytes() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        began = time.perf_counter()
        batches = _WAYS[way](DataSet.open(address))
        next(batches)
        first = time.perf_counter()
        for _ in range(_BATCHES):
            next(batches)
        seconds = time.perf_counter() - first
    finally:
        done.set()
        watcher.join()
        ray.shutdown()
    return {
        "first_batch_seconds": first - began,
        "images_per_second": _BATCHES * _IMAGES / seconds,
        "added_megabytes": most,
    }


def _megabytes() -> float:
    """`own_megabytes` of this process and all below it."""
    own = psutil.Process()
    return sum(map(own_megabytes, (own, *own.children(recursive=True))))


def compare(data: DataSet) -> dict[str, Any]:
    """Measure each way, printing as it goes."""
    rows: dict[str, Any] = {}
    photos = data.manifest.count("train")
    for way in _WAYS:
        rows[way] = row = in_process(f"reading with {way}", read, way, data.address)
        print(
            f"{way:20} {photos:12,} photos  first batch after {row['first_batch_seconds']:6.1f} s  "
            f"{row['images_per_second']:8.0f} images/s  {row['added_megabytes']:6.0f} MB more",
            flush=True,
        )
    return rows
