"""`prepare` beside a plain Pillow loop and torchvision's loader, and its memory against the number of photos.

Speed. Same photos, same output size, one candidate after another in every round:

    Pillow loop      one process of plain Pillow and NumPy, as people write it by hand: list, decode, the same pixel
                     filters, duplicates and near-duplicates, the same Parquet shards; no split, no report
    torchvision      ImageFolder and a DataLoader with a worker per core: list, decode and resize, no filters, nothing
                     written; in its own process, timed after its imports
    raygan           the whole job: from listing to manifest, report, rejected.parquet, pictures and the MLflow run
    ... outlier on   the same with the network that looks at every photo

Python, Ray and MLflow's database start before the clock. Ray's workers start within raygan's first round, which has its
own column, and are there in later rounds. CPU time covers all processes below this one, Ray's own included; on a busy
machine it tells more than the clock, since Ray's workers run at a low priority and the loop at the usual one.

Memory. The photos are repeated under new names (links) until there are as many as asked for, and the job runs in its
own process; the peak resident memory of the driver and of the largest worker is sampled.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import psutil
import pyarrow as pa
from PIL import Image, ImageOps
from tqdm import tqdm

from raygan import tracking
from raygan.benchmarks import comparing
from raygan.benchmarks.processes import find_processes
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import PrepareBenchmarkSettings
from raygan.data import duplicates
from raygan.data.kinds import is_image_name
from raygan.data.listing import Listing, find_photos
from raygan.data.neighbors import close_pairs, words_of
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import write_shard
from raygan.errors import ConfigurationError, RayganError
from raygan.machine import cores
from raygan.runtime import cluster

LOOP = "Pillow loop, 1 process"

#: Photos in a shard of the loop, as many as `prepare` writes at 64 px.
_SHARD = 1024

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
        cluster.connect()
        tracking.connect(_prepare_settings(settings, "", records))
        return _compare(settings, records)


def _compare(settings: PrepareBenchmarkSettings, records: str) -> dict[str, Any]:
    listing = find_photos(settings.input)
    count, size = listing.photos.num_rows, float(pa.compute.sum(listing.photos["size"]).as_py())
    by_label = _class_folders(listing, os.path.join(records, "by-label"))
    candidates: dict[str, Callable[[str], Any]] = {
        LOOP: lambda output: _pillow_loop(_prepare_settings(settings, output, records)),
        "torchvision, decode only": lambda output: _torchvision(by_label, settings.image_size),
        "raygan": lambda output: prepare(_prepare_settings(settings, output, records)),
    }
    if settings.outlier:
        candidates["raygan, outlier filter on"] = lambda output: prepare(
            _prepare_settings(settings, output, records, outlier=True)
        )
    times: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(settings.rounds):
        for name, run in candidates.items():
            with tempfile.TemporaryDirectory(prefix="raygan-") as folder:
                used, start = _cpu_seconds(), time.perf_counter()
                seconds = run(folder)
                times[name].append(seconds if isinstance(seconds, float) else time.perf_counter() - start)
                cpu[name].append(_cpu_seconds() - used)
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
    return {"images": count, "megabytes": size / 1e6, "image_size": settings.image_size, "rows": rows}


def _cpu_seconds() -> float:
    """CPU time of this process and its descendants, including those that ended."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])  # user and system, own and of children that ended
        except psutil.Error:
            continue
    return total


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
    """What people write by hand: one process, one photo after another, the shards at the end."""
    paths = [path for root in settings.input for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)]
    hashes: set[str] = set()
    phashes: list[imagehash.ImageHash] = []
    kept, about = [], []
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
        about.append({"label": path.parent.name, "path": str(path), "hash": digest})
    near = np.stack([np.packbits(value.hash) for value in phashes])
    repeats, _ = duplicates.near_duplicates(close_pairs(words_of(near), settings.hash_distance), np.arange(len(near)))
    chosen = np.flatnonzero(repeats < 0)
    for number, part in enumerate(np.array_split(chosen, -(-len(chosen) // _SHARD))):
        rows = pa.Table.from_pylist([about[i] for i in part])
        write_shard(settings.output, f"{number:05d}.parquet", np.stack([kept[i] for i in part]), rows, "train", "raw")


def _class_folders(listing: Listing, root: str) -> str:
    """Link the photos into a folder per label, as torchvision's ImageFolder wants them, and return the parent."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    photos = listing.photos.to_pylist()
    for number, photo in enumerate(photos):
        if Path(os.fsdecode(photo["path"])).suffix.lower() not in IMG_EXTENSIONS:
            raise ConfigurationError(
                f"--input: torchvision's loader skips {os.fsdecode(photo['path'])}: give photos that end in "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        source = listing.sources[photo["source"]]
        folder = Path(root, photo["label"])
        folder.mkdir(parents=True, exist_ok=True)
        path = os.path.join(source.root, os.fsdecode(photo["path"]))
        (folder / f"{number}{Path(path).suffix}").symlink_to(path)
    return root


def _torchvision(root: str, size: int) -> float:
    """Seconds in a process of its own; a fork of this one would inherit Ray's threads."""
    code = "import sys; from raygan.benchmarks.prepare import load_all; load_all(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, root, str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RayganError(f"torchvision's loader failed, as it does on any unreadable photo: {reason[0]}")
    return float(done.stdout)


def load_all(root: str, size: int) -> None:
    """Read an ImageFolder once and print the seconds from the listing to the last batch."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(size, bicubic), transforms.CenterCrop(size), transforms.PILToTensor()]
    start = time.perf_counter()
    photos = ImageFolder(root, transforms.Compose(steps))
    for _ in DataLoader(photos, batch_size=256, num_workers=cores()):
        pass
    print(time.perf_counter() - start)


def _fits(image: Image.Image, settings: PrepareSettings) -> bool:
    short, long = sorted(image.size)
    return (
        image.width * image.height <= settings.max_megapixels * 1e6
        and short >= (settings.min_side or 1)
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
