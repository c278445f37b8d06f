"""`prepare` beside a plain Pillow loop and torchvision's loader, and its memory against the number of photos.

Speed. Same photos, same output size, one candidate after another in every round:

    Pillow loop      one process of plain Pillow and NumPy, as people write it by hand: list, decode, the same pixel
                     filters, duplicates and near-duplicates, the same Parquet shards; no split, no report
    torchvision      ImageFolder and a DataLoader with a worker per core: list, decode and resize, no filters, nothing
                     written; in its own process, timed after its imports
    raygan           the whole job: from listing to manifest, report, rejected.parquet, pictures and the MLflow run
    ... outlier on   the same with the network that looks at every photo

With `--megapixels`, the photos are large JPEGs made of the given ones. The loop decodes them whole, raygan at a smaller
scale; the mean difference of the kept pixels is printed, too.

Python, Ray and MLflow's database start before the clock. Ray's workers start within raygan's first round, which has its
own column, and are there in later rounds. CPU time covers all processes below this one, Ray's own included; on a busy
machine it tells more than the clock, since Ray's workers run at a low priority and the loop at the usual one.

Memory. The photos are repeated under new names (links) until there are as many as asked for, and the job runs in its
own process; the peak resident memory of the driver and of the largest worker is sampled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from raygan import tracking
from raygan.benchmarks import comparing, large_photos
from raygan.benchmarks import prepare_peers as peers
from raygan.benchmarks.processes import cpu_seconds, find_processes
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import PrepareBenchmarkSettings
from raygan.data.kinds import is_image_name
from raygan.data.listing import find_photos
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime import cluster

LOOP = "Pillow loop, 1 process"

#: Seconds between two samples of memory.
_LOOK_EVERY = 0.2


def benchmark(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    if settings.compare:
        result: dict[str, Any] = {"compared": comparing.measure(settings.compare)}
    else:
        result = _memory(settings) if settings.memory else _speed(settings)
    result["machine"] = machine()
    write_json(settings.json_file, result)
    return result


# ---------------------------------------------------------------- speed


def _speed(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="raygan-") as records:
        if settings.megapixels:
            folder = Path(records, "photos")
            large_photos.enlarge(settings.input, folder, settings.large_photos, settings.megapixels)
            settings = settings.model_copy(update={"input": [str(folder)]})
        cluster.connect()
        tracking.connect(_prepare_settings(settings, "", records))
        return _compare(settings, records)


def _compare(settings: PrepareBenchmarkSettings, records: str) -> dict[str, Any]:
    listing = find_photos(settings.input)
    count, size = listing.photos.num_rows, float(pa.compute.sum(listing.photos["size"]).as_py())
    by_label = peers.class_folders(listing, os.path.join(records, "by-label"))
    candidates: dict[str, Callable[[str], Any]] = {
        LOOP: lambda output: peers.pillow_loop(_prepare_settings(settings, output, records)),
        "torchvision, decode only": lambda output: peers.torchvision(by_label, settings.image_size),
        "raygan": lambda output: prepare(_prepare_settings(settings, output, records)),
    }
    if settings.outlier:
        candidates["raygan, outlier filter on"] = lambda output: prepare(
            _prepare_settings(settings, output, records, outlier=True)
        )
    difference: float | None = None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(settings.rounds):
        for name, run in candidates.items():
            with tempfile.TemporaryDirectory(prefix="raygan-") as folder:
                used, start = cpu_seconds(), time.perf_counter()
                seconds = run(folder)
                times[name].append(seconds if isinstance(seconds, float) else time.perf_counter() - start)
                cpu[name].append(cpu_seconds() - used)
                if settings.megapixels and name == "raygan":
                    difference = large_photos.difference(os.path.join(folder, "shards"), Path(*settings.input))
    best = {name: min(values) for name, values in times.items()}
    rows = {
        name: {
            "images_per_second": count / seconds,
            "megabytes_per_second": size / 1e6 / seconds,
            "against_loop": best[LOOP] / seconds,
            "images_per_second_first": count / times[name][0],
            "cpu_milliseconds_per_image": min(cpu[name]) / count * 1e3,
            "seconds": times[name],
        }
        for name, seconds in best.items()
    }
    print(f"{count:,} photos, {size / 1e6:.0f} MB, to {settings.image_size} px, best of {settings.rounds}")
    print(f"{'':26}{'images/s':>9}{'MB/s':>7}{'x loop':>8}{'first round':>13}{'CPU ms/image':>14}")
    for name, row in rows.items():
        numbers = list(row.values())
        print("{:26}{:9.0f}{:7.1f}{:8.2f}{:13.0f}{:14.2f}".format(name, *numbers[:5]))
    if difference is not None:
        print(f"raygan's pixels differ by {difference:.2f} levels of 256 from those of photos decoded whole")
    about = {"images": count, "megabytes": size / 1e6, "image_size": settings.image_size, "difference": difference}
    return about | {"rows": rows}


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


# ---------------------------------------------------------------- memory


def _memory(settings: PrepareBenchmarkSettings) -> dict[str, Any]:
    rows = {}
    for count in settings.memory:
        with tempfile.TemporaryDirectory(prefix="raygan-", dir=settings.scratch) as scratch:
            repeat(settings.input, os.path.join(scratch, "photos"), count)
            rows[count] = _peaks(settings, Path(scratch))
        print(
            f"{count:9,} photos: driver {rows[count]['driver']:6.0f} MB, largest worker {rows[count]['worker']:6.0f} MB"
        )
    first, last = rows[settings.memory[0]], rows[settings.memory[-1]]
    growth = {part: last[part] / first[part] for part in first}
    print(f"growth: driver {growth['driver']:.2f}x, largest worker {growth['worker']:.2f}x")
    return {"peak_megabytes": {str(count): row for count, row in rows.items()}, "growth": growth}


def repeat(inputs: list[str], folder: str, count: int) -> None:
    """Fill a folder with links to the photos of the inputs, repeated under new names in their class folders.

    Args:
        inputs: folders of photos.
        folder: where the links go.
        count: number of links.
    """
    found = [
        (Path(root), path) for root in inputs for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)
    ]
    if not found:
        raise ConfigurationError(f"--input: there are no photos in {', '.join(inputs)}")
    for number in range(count):
        root, path = found[number % len(found)]
        parent = Path(folder) / path.parent.relative_to(root)
        parent.mkdir(parents=True, exist_ok=True)
        target = parent / f"{path.stem}-{number:07}{path.suffix}"
        target.symlink_to(path.resolve())


def _peaks(settings: PrepareBenchmarkSettings, scratch: Path) -> dict[str, float]:
    """Run the job and return the peak resident megabytes of the driver and of the largest worker."""
    # Repeated photos are duplicates, which these filters would reject.
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
        raise RayganError(f"the watched job ended with status {process.returncode}; see its message above")
    return peaks


def main(values: str) -> None:
    """Run `prepare` with settings in JSON, in the process whose memory is watched."""
    prepare(PrepareSettings.model_validate(json.loads(values)))


def _resident(pid: int) -> list[tuple[str, float]]:
    """Resident megabytes of the driver and of each Ray worker below it."""
    found = []
    with suppress(psutil.Error):  # a process may end while we look
        for part, processes in (("driver", [psutil.Process(pid)]), ("worker", find_processes("ray::", below=pid))):
            found += [(part, process.memory_info().rss / 1e6) for process in processes]
    return found
