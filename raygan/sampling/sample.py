"""Sample: a generator in, files of samples out.

1. `sample` finds the generator and divides the samples into chunks.
2. A Ray task for each missing chunk draws it and writes it; only counts come back. A worker process keeps the generator
   that it has loaded for the next task.
3. A chunk's record under ``chunks/`` is written last, so a job run again redoes only unfinished chunks.

Sample i is the image of seed + i (`raygan.models.latents`), the same image that the service gives for that seed.
``sample.json`` says what the folder holds; a folder with other samples is refused.
"""

from __future__ import annotations

import functools
import io
import json
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from torch import Tensor
from tqdm import tqdm

from raygan import pictures, tracking
from raygan.addresses import slug
from raygan.errors import ConfigurationError, some
from raygan.models.drawing import Drawing
from raygan.models.weights import digest_of
from raygan.runtime import capacity, cluster, storage
from raygan.runtime.room import warn_of_room
from raygan.sampling.generators import NamedGenerator, find_generators
from raygan.sampling.settings import SampleSettings
from raygan.settings import closest

#: File that says what the folder holds.
RECORD = "sample.json"

#: Samples in the picture logged to MLflow, and in a row of it.
_SHOWN, _COLUMNS = 64, 8


@dataclass(frozen=True)
class SampleResult:
    """What was written: `n` samples of `model` under `output`."""

    model: str
    output: str
    n: int

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps({"model": self.model, "output": self.output, "n": self.n})


def sample(settings: SampleSettings) -> SampleResult:
    """Draw the samples that the output doesn't hold yet.

    Raises:
        ConfigurationError: the model or label is unknown, or the output holds other samples.
        RayganError: files can't be read or written.
    """
    named = _find(settings)
    label = _label(settings, named)
    record = {
        "model": named.name,
        "weights": digest_of(named.generator)[:16],  # folders of different models may share a name
        "label": label,
        **settings.model_dump(include={"n", "seed", "truncation", "format", "chunk_images"}),
    }
    _claim(settings.output, record)
    missing = [number for number in range(-(-settings.n // settings.chunk_images)) if not _is_done(settings, number)]
    done = settings.n - sum(_size(settings, number) for number in missing)
    if done:
        print(f"{done} samples are there already")
    name = time.strftime(f"sample-{slug(label)}-%Y%m%d-%H%M%S")
    tags = {"raygan.label": label}
    if missing:
        cluster.connect(settings)
        left = settings.n - done
        of_each = 3 * named.generator.settings.image_size**2
        warn_of_room("--output", settings.output, left * of_each, f"{left:,} samples of {of_each:,} bytes or less")
    with tracking.start_run(settings, name, job="sample", params=record, tags=tags) as log:
        _write_chunks(settings, named, label, missing, done)
        few = _draw(Drawing(named.generator), settings, label, 0, min(_SHOWN, settings.n))
        log.log_bytes(pictures.png(pictures.grid(few, _COLUMNS)), "pictures/samples.png")
    return SampleResult(named.name, settings.output, settings.n)


def _draw(drawing: Drawing, settings: SampleSettings, label: str, first: int, count: int) -> Tensor:
    """Samples `first` to `first + count - 1`: uint8 (count, 3, S, S)."""
    seeds = range(settings.seed + first, settings.seed + first + count)
    return drawing.of_seeds(seeds, label, settings.truncation).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=1)
def _drawing(generator: ray.ObjectRef) -> Drawing:
    """The generator in this worker process, which keeps it."""
    capacity.use_own_cores()
    named: NamedGenerator = cluster.fetch(generator)
    return Drawing(named.generator, capacity.own_device())


def _write(settings: SampleSettings, generators: list[ray.ObjectRef], label: str, number: int) -> int:
    """Draw and write a chunk; the number of its images. The generator is in a list, else Ray would fetch it again."""
    first = number * settings.chunk_images
    count = _size(settings, number)
    seeds = range(settings.seed + first, settings.seed + first + count)
    images = _draw(_drawing(generators[0]), settings, label, first, count)
    files = [pictures.png(pictures.grid(image[None], 1)) for image in images]
    if settings.format == "png":
        for index, content in enumerate(files, start=first):
            storage.write_bytes(storage.join(settings.output, f"{slug(label)}.{index:08d}.png"), content)
    else:
        table = pa.table({"image": files, "label": [label] * count, "seed": list(seeds)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, use_dictionary=["label"])
        storage.write_bytes(storage.join(settings.output, f"{slug(label)}-{number:05d}.parquet"), buffer.getvalue())
    storage.write_json(_record(settings, number), {"images": count})
    return count


def _find(settings: SampleSettings) -> NamedGenerator:
    if settings.model is None and settings.label is None:
        raise ConfigurationError("--label or --model is required: what should be drawn?")
    found = find_generators(
        settings, [settings.model] if settings.model else [], [settings.label] if settings.label else []
    )
    if not found:
        known = sorted(tracking.serving_generators(tracking.connect(settings)))
        others = f", but of {some(known)}" if known else ""
        raise ConfigurationError(
            f"--label: no generator of {settings.label} is registered under the alias {tracking.SERVING_ALIAS!r}"
            f"{others}: train one with jobs/train.py, or name one with --model{closest(str(settings.label), known)}"
        )
    return found[0]


def _label(settings: SampleSettings, named: NamedGenerator) -> str:
    label = settings.label or (named.labels[0] if len(named.labels) == 1 else "")
    if label not in named.labels:
        given = f"it doesn't draw {label}" if label else "say which"
        raise ConfigurationError(f"--label: {named.name} draws {some(named.labels)}: {given}")
    return label


def _claim(output: str, record: dict[str, Any]) -> None:
    """Record in the folder what it holds. Raises ConfigurationError if it holds other samples."""
    path = storage.join(output, RECORD)
    before = storage.read_json(path)
    if before is None:
        storage.write_json(path, record)
    elif different := [key for key in record if before.get(key, record[key]) != record[key]]:
        differences = ", ".join(f"{key} {before[key]}" for key in different)
        raise ConfigurationError(f"--output: {output} holds other samples ({differences}): give another folder")


def _size(settings: SampleSettings, number: int) -> int:
    """Samples in a chunk."""
    return min(settings.chunk_images, settings.n - number * settings.chunk_images)


def _record(settings: SampleSettings, number: int) -> str:
    """Address of a chunk's record."""
    return storage.join(settings.output, "chunks", f"{number:05d}.json")


def _is_done(settings: SampleSettings, number: int) -> bool:
    return storage.read_json(_record(settings, number)) is not None


def _write_chunks(settings: SampleSettings, named: NamedGenerator, label: str, missing: list[int], done: int) -> None:
    """Write the missing chunks in tasks on the whole cluster, with a progress bar."""
    with tqdm(total=settings.n, initial=done, desc="sampling", unit="img", unit_scale=True) as bar:
        if not missing:
            return
        # Ray would end a worker with a GPU after one task.
        write = ray.remote(num_cpus=1, num_gpus=capacity.gpu_share(), max_calls=0)(_write)
        generator = ray.put(named)
        waiting = [write.remote(settings, [generator], label, number) for number in missing]
        while waiting:
            (ended, *_), waiting = ray.wait(waiting)
            bar.update(cluster.fetch(ended))
