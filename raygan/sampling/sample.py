"""Sample: a generator in, files of samples out, as many as asked for.

The mental model:

1. `sample` finds the generator and cuts the samples into chunks.
2. Ray Data streams the chunks that aren't there yet through a pool of `ChunkWriter` actors, each with the generator
   loaded once, which draw and write. Nothing but counts comes back.
3. A chunk's record under ``chunks/`` is written last, so that a job run again redoes unfinished chunks only.

Sample i is the image of seed + i (`raygan.models.latents`), the very image that the service gives for that seed.
``sample.json`` says what the folder holds; a folder that holds other samples is refused.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor
from tqdm import tqdm

from raygan import pictures, tracking
from raygan.errors import ConfigurationError
from raygan.models.latents import latents_of
from raygan.runtime import cluster, storage
from raygan.sampling.generators import NamedGenerator, find_generators
from raygan.sampling.settings import SampleSettings

#: File that says what the folder holds.
RECORD = "sample.json"

#: Samples on the picture that MLflow gets.
_SHOWN = 64


@dataclass(frozen=True)
class SampleResult:
    """What was written."""

    model: str
    output: str
    n: int

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps({"model": self.model, "output": self.output, "n": self.n})


def sample(settings: SampleSettings) -> SampleResult:
    """Draw the samples that the output doesn't hold yet.

    Raises ConfigurationError if the model or the label is unknown or the output holds other samples, RayganError
    if files can't be read or written.
    """
    named = _find(settings)
    label = _label(settings, named)
    what = {
        "model": named.name,
        "label": label,
        **settings.model_dump(include={"n", "seed", "truncation", "format", "chunk_images"}),
    }
    _claim(settings.output, what)
    todo = [number for number in range(-(-settings.n // settings.chunk_images)) if not _is_done(settings, number)]
    done = settings.n - sum(_size(settings, number) for number in todo)
    if done:
        print(f"{done} samples are there already")
    name = time.strftime(f"sample-{label}-%Y%m%d-%H%M%S")
    tags = {"raygan.label": label}
    with (
        cluster.ray_data(settings),
        tracking.start_run(settings, name, job="sample", params=what, tags=tags) as log,
    ):
        _draw(settings, named, label, todo, done)
        few = draw(named, range(settings.seed, settings.seed + min(_SHOWN, settings.n)), label, settings.truncation)
        log.log_bytes(pictures.png(pictures.grid(few, 8)), "pictures/samples.png")
    return SampleResult(named.name, settings.output, settings.n)


def draw(named: NamedGenerator, seeds: range, label: str, truncation: float) -> Tensor:
    """uint8 images (n, 3, S, S) of consecutive seeds."""
    return named.draw(label, latents_of(seeds, named.generator.settings.z_dim) * truncation)


class ChunkWriter:
    """Draws and writes chunks; an actor of Ray Data's pool."""

    def __init__(self, settings: SampleSettings, named: NamedGenerator, label: str):
        torch.set_num_threads(1)  # the pool has an actor for each core
        self._settings, self._named, self._label = settings, named, label

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"images": np.array([self._write(int(number)) for number in batch["chunk"]])}

    def _write(self, number: int) -> int:
        settings = self._settings
        first = number * settings.chunk_images
        count = _size(settings, number)
        seeds = range(settings.seed + first, settings.seed + first + count)
        images = draw(self._named, seeds, self._label, settings.truncation)
        files = [pictures.png(pictures.grid(image[None], 1)) for image in images]
        if settings.format == "png":
            for index, content in enumerate(files, start=first):
                storage.write_bytes(storage.join(settings.output, f"{self._label}.{index:08d}.png"), content)
        else:
            table = pa.table({"image": files, "label": [self._label] * count, "seed": list(seeds)})
            buffer = io.BytesIO()
            pq.write_table(table, buffer, use_dictionary=["label"])
            path = storage.join(settings.output, f"{self._label}-{number:05d}.parquet")
            storage.write_bytes(path, buffer.getvalue())
        storage.write_json(_chunk(settings, number), {"images": count})
        return count


def _find(settings: SampleSettings) -> NamedGenerator:
    if settings.model is None and settings.label is None:
        raise ConfigurationError("--label or --model is required: what shall be drawn?")
    found = find_generators(
        settings, [settings.model] if settings.model else [], [settings.label] if settings.label else []
    )
    if not found:
        raise ConfigurationError(
            f"--label: no generator of {settings.label} is registered under the alias {tracking.SERVING_ALIAS!r}: "
            f"train one with jobs/train.py, or name one with --model"
        )
    return found[0]


def _label(settings: SampleSettings, named: NamedGenerator) -> str:
    label = settings.label or (named.labels[0] if len(named.labels) == 1 else "")
    if label not in named.labels:
        given = f"it doesn't draw {label}" if label else "say which"
        raise ConfigurationError(f"--label: {named.name} draws {', '.join(named.labels)}: {given}")
    return label


def _claim(output: str, what: dict[str, Any]) -> None:
    """Say in the folder what it holds. Raises ConfigurationError if it holds other samples."""
    record = storage.join(output, RECORD)
    before = storage.read_json(record)
    if before is None:
        storage.write_json(record, what)
    elif before != what:
        differences = ", ".join(f"{key} {before.get(key)}" for key in what if before.get(key) != what[key])
        raise ConfigurationError(f"--output: {output} holds other samples ({differences}): give another folder")


def _size(settings: SampleSettings, number: int) -> int:
    return min(settings.chunk_images, settings.n - number * settings.chunk_images)


def _chunk(settings: SampleSettings, number: int) -> str:
    return storage.join(settings.output, "chunks", f"{number:05d}.json")


def _is_done(settings: SampleSettings, number: int) -> bool:
    return storage.read_json(_chunk(settings, number)) is not None


def _draw(settings: SampleSettings, named: NamedGenerator, label: str, todo: list[int], done: int) -> None:
    """Stream the chunks that are to do through the pool, with a progress bar."""
    with tqdm(total=settings.n, initial=done, desc="sampling", unit="img", unit_scale=True) as bar:
        if not todo:
            return
        actors = max(1, min(len(todo), int(cluster.total("CPU"))))
        written = ray.data.from_items(
            [{"chunk": number} for number in todo], override_num_blocks=len(todo)
        ).map_batches(
            ChunkWriter,
            batch_size=1,
            concurrency=(1, actors),
            fn_constructor_args=(settings, named, label),
        )
        for row in written.iter_rows():
            bar.update(int(row["images"]))
