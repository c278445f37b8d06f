"""`prepare` against a plain Pillow loop, and its memory against the number of photos.

Speed: the same photos, output size and pixel filters (the loop's near-duplicates too). The loop is one process
in plain Pillow and NumPy, as one would write it by hand; it makes no report, no pictures and no split. Ray and
MLflow's database are made before the clock; every number of raygan is of the whole job, from listing to
manifest, report and pictures included. Measure on an idle machine: Ray gives its workers a low priority, the
loop has the usual one.

Memory: the photos are repeated under new names (links) until there are as many as asked for, and the job
runs in a process of its own; the peak resident memory of the driver and of the largest worker is sampled.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import psutil
import pyarrow as pa
from PIL import Image, ImageOps
from tqdm import tqdm

from raygan import cluster, tracking
from raygan.config import PrepareBenchmarkSettings, PrepareSettings
from raygan.errors import ConfigurationError, RayganError
from raygan.photos import compare
from raygan.photos.sources import find_photos, is_image_name
from raygan.prepare import prepare

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
    """What one would write by hand: one process, one photo after the other, the pixels to a NumPy file at the end."""
    paths = [path for root in settings.input for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)]
    hashes: set[str] = set()
    phashes: list[imagehash.ImageHash] = []
    kept, labels = [], []
    for path in tqdm(paths, desc="Pillow loop", unit=" images"):
        try:
            with Image.open(path) as image:
                if not _fits(image, settings):
                    continue
                photo = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError):
            continue
        square = ImageOps.fit(photo, (settings.image_size, settings.image_size), Image.Resampling.BICUBIC)
        if not _has_content(square, settings):
            continue
        digest = hashlib.sha256(photo.tobytes()).hexdigest()
        if digest in hashes:
            continue
        hashes.add(digest)
        phashes.append(imagehash.phash(photo))
        kept.append(np.asarray(square))
        labels.append(path.parent.name)
    near = np.stack([np.packbits(value.hash) for value in phashes])
    repeats, _ = compare.near_duplicates(compare.close_pairs(near, settings.hash_distance), np.arange(len(near)))
    os.makedirs(settings.output)
    np.save(os.path.join(settings.output, "pixels.npy"), np.stack(kept)[repeats < 0])
    np.save(os.path.join(settings.output, "labels.npy"), np.array(labels)[repeats < 0])


def _fits(image: Image.Image, settings: PrepareSettings) -> bool:
    short, long = sorted(image.size)
    return (
        image.width * image.height <= settings.max_megapixels * 1e6
        and short >= settings.min_side
        and long / short <= settings.max_aspect
    )


def _has_content(square: Image.Image, settings: PrepareSettings) -> bool:
    grey = np.asarray(square.convert("L").resize((64, 64)), np.float32)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return bool(grey.std() >= settings.min_contrast and laplacian.std() / grey.std() >= settings.min_sharpness)


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
        raise RayganError(f"the job that was watched ended with status {process.returncode}; it said why above")
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
