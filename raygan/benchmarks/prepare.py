"""`prepare` against a plain Pillow loop, and its memory against the number of photos.

Speed: the same photos, output size and pixel filters; the loop is one process that reads, decodes, judges and
shrinks each photo with the very same functions, finds duplicates, and writes shards. What is compared is
therefore what Ray Data costs and what more cores bring. Ray and MLflow's database are made before the clock;
every number is of the whole job, from listing to manifest, report and pictures included. Measure on an idle
machine: Ray gives its workers a low priority, the loop has the usual one.

Memory: the photos are repeated under new names (links) until there are as many as asked for, and the job
runs in a process of its own; the peak resident memory of the driver and of the largest worker is sampled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from tqdm import tqdm

from raygan import cluster, tracking
from raygan.config import PrepareBenchmarkSettings, PrepareSettings
from raygan.errors import ConfigurationError
from raygan.photos import chunks, compare
from raygan.photos.sources import find_photos, is_image_name
from raygan.prepare import pixel_settings, prepare
from raygan.shards import write_shard

#: Seconds between two looks at the processes' memory.
_LOOK_EVERY = 0.2


def benchmark(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    result = _memory(settings) if settings.memory else _speed(settings)
    result["machine"] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    if settings.json_file:
        Path(settings.json_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


# ---------------------------------------------------------------- speed


def _speed(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="raygan-") as records:
        cluster.connect()
        tracking.connect(_prepare_settings(settings, "", records))
        return _compare(settings, records)


def _compare(settings: PrepareBenchmarkSettings, records: str) -> dict[str, Any]:
    listing = find_photos(settings.input)
    count, size = listing.photos.num_rows, float(pa.compute.sum(listing.photos["size"]).as_py())
    candidates: dict[str, Callable[[str], Any]] = {
        "Pillow loop, 1 process": lambda output: _pillow_loop(_prepare_settings(settings, output, records)),
        "raygan": lambda output: prepare(_prepare_settings(settings, output, records)),
    }
    if settings.outlier:
        candidates["raygan, outlier filter on"] = lambda output: prepare(
            _prepare_settings(settings, output, records, outlier=True)
        )
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(settings.rounds):
        for name, run in candidates.items():
            with tempfile.TemporaryDirectory(prefix="raygan-") as folder:
                start = time.perf_counter()
                run(folder)
                times[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in times.items()}
    rows = {
        name: {
            "images_per_second": count / seconds,
            "megabytes_per_second": size / 1e6 / seconds,
            "against_loop": best["Pillow loop, 1 process"] / seconds,
        }
        for name, seconds in best.items()
    }
    print(f"{count:,} photos, {size / 1e6:.0f} MB, to {settings.image_size} px, best of {settings.rounds}")
    for name, row in rows.items():
        numbers = f"{row['images_per_second']:9.0f} images/s {row['megabytes_per_second']:7.1f} MB/s"
        print(f"{name:28}{numbers} {row['against_loop']:6.2f}x")
    return {"images": count, "megabytes": size / 1e6, "image_size": settings.image_size, "rows": rows}


def _prepare_settings(
    settings: PrepareBenchmarkSettings, output: str, records: str, *, outlier: bool = False
) -> PrepareSettings:
    return PrepareSettings(
        input=settings.input,
        output=os.path.join(output, "shards"),
        storage=records,
        tracking_uri=None,
        image_size=settings.image_size,
        skip=[] if outlier else ["outlier"],
    )


def _pillow_loop(settings: PrepareSettings) -> None:
    """What one would write without a cluster, with the same functions for each photo."""
    listing = find_photos(settings.input)
    pixel, size = pixel_settings(settings), settings.chunk_images
    parts = [listing.photos.slice(start, size) for start in range(0, listing.photos.num_rows, size)]
    tables = []
    with tqdm(total=listing.photos.num_rows, desc="Pillow loop", unit=" images") as bar:
        for part in parts:
            tables.append(chunks.build_chunk(part, listing.sources, pixel))
            bar.update(part.num_rows)
    whole = pa.concat_tables(tables)
    verdicts = compare.Verdicts(whole.select(chunks.RECORD.names))
    verdicts.reject_duplicates()
    pairs = verdicts.reject_near_duplicates(verdicts.close_pairs(settings.hash_distance))
    judged = verdicts.table(pairs, settings.validation)
    for split in ("train", "validation"):
        rows = np.flatnonzero([where == split for where in judged["split"].to_pylist()])
        for number, part in enumerate(np.array_split(rows, max(1, len(rows) // 1024))):
            taken = whole.take(pa.array(part))
            images = b"".join(taken["image"].to_pylist())
            pixels = np.frombuffer(images, np.uint8).reshape(-1, settings.image_size, settings.image_size, 3)
            write_shard(settings.output, f"{split}-{number:05d}.parquet", pixels, taken, split, settings.encoding)


# ---------------------------------------------------------------- memory


def _memory(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    rows = {}
    for count in settings.memory:
        with tempfile.TemporaryDirectory(prefix="raygan-", dir=settings.scratch) as scratch:
            _repeat(settings.input, Path(scratch, "photos"), count)
            rows[count] = _peaks(settings, Path(scratch))
        print(
            f"{count:9,} photos: driver {rows[count]['driver']:6.0f} MB, largest worker {rows[count]['worker']:6.0f} MB"
        )
    first, last = rows[settings.memory[0]], rows[settings.memory[-1]]
    growth = {part: last[part] / first[part] for part in first}
    print(f"growth: driver {growth['driver']:.2f}x, largest worker {growth['worker']:.2f}x")
    return {"peak_megabytes": {str(count): row for count, row in rows.items()}, "growth": growth}


def _repeat(inputs: list[str], folder: Path, count: int) -> None:
    """Fill a folder with `count` photos: those of the inputs again and again, in their folders, renamed."""
    found = [
        (Path(root), path) for root in inputs for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)
    ]
    if not found:
        raise ConfigurationError(f"--input: there are no photos in {', '.join(inputs)}")
    for number in range(count):
        root, path = found[number % len(found)]
        parent = folder / path.parent.relative_to(root)
        parent.mkdir(parents=True, exist_ok=True)
        target = parent / f"{path.stem}-{number:07}{path.suffix}"
        target.symlink_to(path.resolve())


def _peaks(settings: PrepareBenchmarkSettings, scratch: Path) -> dict[str, float]:
    """Run the job on its own and watch: peak resident megabytes of the driver and of the largest worker."""
    # Repeated photos are duplicates; with those filters on there would be little left to write.
    skip = ["duplicate", "near_duplicate"] + ([] if settings.outlier else ["outlier"])
    command = [sys.executable, "-c", "import sys; from raygan.benchmarks.prepare import main; main(sys.argv[1])"]
    values = {
        "input": [str(scratch / "photos")],
        "output": str(scratch / "shards"),
        "storage": str(scratch),
        "image_size": settings.image_size,
        "skip": skip,
    }
    process = subprocess.Popen([*command, json.dumps(values)], env={**os.environ, "RAY_ADDRESS": "local"})
    peaks = {"driver": 0.0, "worker": 0.0}
    while process.poll() is None:
        for part, memory in _resident(process.pid):
            peaks[part] = max(peaks[part], memory)
        time.sleep(_LOOK_EVERY)
    if process.returncode:
        raise RuntimeError(f"the job ended with status {process.returncode}")
    return peaks


def main(values: str) -> None:
    """Run one `prepare` with settings in JSON: the process whose memory is watched."""
    prepare(PrepareSettings.model_validate(json.loads(values)))


def _resident(pid: int) -> list[tuple[str, float]]:
    """Resident megabytes of the driver and of each Ray worker below it."""
    try:
        driver = psutil.Process(pid)
        found = [("driver", driver.memory_info().rss / 1e6)]
        for child in driver.children(recursive=True):
            if child.name().startswith("ray::"):
                found.append(("worker", child.memory_info().rss / 1e6))
    except psutil.Error:  # a process ended while it was looked at
        return []
    return found
