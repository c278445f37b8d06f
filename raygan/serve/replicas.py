"""Replicas: a model's networks in a worker of its own, computing for the gateway's calls.

The mental model:

1. A replica belongs to one registered model and holds its latest versions. The gateway names the version with every
   call, so an answer is of one version however many replicas there are, and a change of version is a change of
   what the gateway asks for: nothing is restarted. A version that isn't there yet is fetched while others go on.
2. A call carries what several requests want; `Lanes` cut and join calls into batches.
3. Both replicas answer with arrays; pictures are made in the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from raygan.models.fuse import fast_classifier, fast_network
from raygan.models.hardware import computes_bf16
from raygan.models.latents import latents_of, slerp
from raygan.serve.executor import Lanes, steady
from raygan.serve.messages import Draws, Judge, ModelVersion, Pixels, Verdicts
from raygan.serve.model_store import Fetch, Files, write_files
from raygan.serve.settings import ServeSettings

if TYPE_CHECKING:
    from raygan.models.gan import Generator
    from raygan.models.googlenet import Classifier

log = logging.getLogger("raygan.serve")

#: Versions a replica holds: the champion, and the one before it for requests under way and for going back.
_KEPT_VERSIONS = 2

#: bfloat16 is taken only if it moves no probability by this much on trial images; 0.01 is what is promised.
_BF16_SHIFT = 0.007

#: Rows to which batches are padded where they must be: twice as many take a lone image almost twice as long.
_PADDED_BATCH = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A version that is ready: its network's description and the lanes around it."""

    model: T
    lanes: Lanes


class ModelReplica(Generic[T]):
    """Versions of one model, loaded as they are asked for. A kind of replica says how in `_load`."""

    def __init__(self, settings: ServeSettings, fetch: Fetch):
        self._settings, self._fetch = settings, fetch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._versions: OrderedDict[ModelVersion, asyncio.Task[Loaded[T]]] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, "load")
        torch.set_num_threads(1)  # lanes are the parallelism
        # cuDNN would choose kernels by trial and by what is fastest: another replica's pixels would be others.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Load a version, if it isn't, and describe it. Raises RayganError if it can't be had or read."""
        return self._describe((await self._loaded(model)).model)

    def _load(self, folder: Path) -> Loaded[T]:
        raise NotImplementedError

    def _describe(self, model: T) -> dict[str, Any]:
        raise NotImplementedError

    async def _loaded(self, model: ModelVersion) -> Loaded[T]:
        task = self._versions.get(model)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.ensure_future(self._load_version(model))
            self._versions[model] = task
        self._versions.move_to_end(model)
        # Shielded: a request that is given up must not end a load that others wait for.
        return await asyncio.shield(task)

    async def _load_version(self, model: ModelVersion) -> Loaded[T]:
        files = await self._fetch(model)
        loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._load_files, files)
        while len(self._versions) > _KEPT_VERSIONS:
            old = next(iter(self._versions.values()))
            if not old.done():
                break
            self._versions.popitem(last=False)
            if not old.cancelled() and not old.exception():
                old.result().lanes.close()
        return loaded

    def _load_files(self, files: Files) -> Loaded[T]:
        with tempfile.TemporaryDirectory() as scratch:
            return self._load(write_files(files, Path(scratch)))

    def _lanes(self, compute: Callable[..., Tensor], *, padded: bool) -> Lanes:
        batch = self._settings.batch_images
        if padded:
            batch = min(batch, _PADDED_BATCH)
        return Lanes(compute, threads=self._threads(), batch=batch, padded=padded)

    def _steady(self, compute: Callable[..., Tensor], example: Sequence[Tensor]) -> bool:
        """Whether rows don't depend on their company here. example: a whole batch."""
        return self._device.type == "cpu" and steady(compute, example, self._settings.batch_images)

    def _threads(self) -> int:
        if self._device.type != "cpu":
            return 1
        return self._settings.threads or len(os.sched_getaffinity(0))


class GeneratorReplica(ModelReplica["Generator"]):
    """One registered generator."""

    def __init__(self, settings: ServeSettings, fetch: Fetch):

        super().__init__(settings, fetch)

    async def sample(self, model: ModelVersion, wanted: list[Draws]) -> tuple[Pixels, float]:
        """Images of all the draws in order, (n, S, S, 3), and the seconds that drawing took."""
        loaded = await self._loaded(model)
        started = time.perf_counter()
        latents = torch.cat([points_of(draws, loaded.model.settings.z_dim) for draws in wanted])
        inputs = [latents]
        if labels := loaded.model.labels:
            numbers = [labels.index(draws.label) for draws in wanted for _ in draws.seeds]
            inputs.append(torch.tensor(numbers, dtype=torch.int64))
        pixels = await loaded.lanes.run(*inputs)
        return pixels.numpy(), time.perf_counter() - started

    def _load(self, folder: Path) -> Loaded[Generator]:
        from raygan.models.gan import load_generator

        generator = load_generator(folder)[0]
        batch = self._settings.batch_images
        example = [latents_of(range(batch), generator.settings.z_dim)]
        if generator.labels:
            example.append(torch.arange(batch) % len(generator.labels))
        network = fast_network(generator, example, self._device)

        @torch.inference_mode()
        def compute(*inputs: Tensor) -> Tensor:
            images = network(*(column.to(self._device) for column in inputs))
            return _to_bytes(images).permute(0, 2, 3, 1).cpu().contiguous()

        # Pixels shall not depend on what else was drawn with them, to the last bit.
        return Loaded(generator, self._lanes(compute, padded=not self._steady(compute, example)))

    def _describe(self, model: Generator) -> dict[str, Any]:
        return {"image_size": model.settings.image_size, "labels": list(model.labels)}


class ClassifierReplica(ModelReplica["Classifier"]):
    """The classifier of all labels."""

    def __init__(self, settings: ServeSettings, fetch: Fetch):

        super().__init__(settings, fetch)

    async def classify(self, model: ModelVersion, wanted: list[Judge]) -> tuple[Verdicts, float]:
        """Verdicts on all the images in order, and the seconds they took."""
        loaded = await self._loaded(model)
        started = time.perf_counter()
        answers = [loaded.lanes.run(_from_array(judge.images), alone=judge.alone) for judge in wanted]
        probabilities = torch.cat(await asyncio.gather(*answers))
        return Verdicts(loaded.model.labels, probabilities.numpy()), time.perf_counter() - started

    def _load(self, folder: Path) -> Loaded[Classifier]:
        from raygan.models.googlenet import load_classifier, to_input

        classifier = load_classifier(folder)
        fast = fast_classifier(classifier, self._device, bf16=False)
        bf16 = computes_bf16(self._device)
        if bf16:
            coarse = fast_classifier(classifier, self._device, bf16=True)
            bf16 = _shift(fast, coarse, self._device) < _BF16_SHIFT
            fast = coarse if bf16 else fast

        def compute(images: Tensor) -> Tensor:
            return fast.probabilities(images.to(self._device)).cpu()

        @torch.inference_mode()
        def logits(images: Tensor) -> Tensor:  # of which a sure probability would hide the rounding
            scores: Tensor = fast.net(to_input(images, fast.image_size))
            return scores

        size = classifier.image_size
        draws = torch.Generator().manual_seed(0)
        example = torch.randint(256, (self._settings.batch_images, 3, size, size), generator=draws, dtype=torch.uint8)
        # In float32 nobody sees a verdict's rounding, and the gateway asks again where it could decide. In bfloat16 it
        # would be visible.
        padded = bf16 and not self._steady(logits, [example])
        return Loaded(classifier, self._lanes(compute, padded=padded))

    def _describe(self, model: Classifier) -> dict[str, Any]:
        return {"image_size": model.image_size, "labels": list(model.labels)}


def _shift(first: Classifier, second: Classifier, device: torch.device) -> float:
    """The most that two forms of a classifier differ by, in probability, on trial images; 1 if those can't tell.

    The images are soft random blobs, and blends between the two of which the first form is most and least sure: where
    it is sure, nothing moves.
    """
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blobs = torch.nn.functional.interpolate(noise, size=first.image_size, mode="bicubic") * 60 + 127
    sure = first.probabilities(_rounded(blobs).to(device))[:, 0].cpu()
    shares = torch.linspace(0, 1, 64)[:, None, None, None]
    images = _rounded(torch.cat([blobs, torch.lerp(blobs[sure.argmin()], blobs[sure.argmax()], shares)])).to(device)
    before = first.probabilities(images)
    if not ((before > 0.1) & (before < 0.9)).any():
        log.info("no trial image is between the labels, so the classifier computes in float32")
        return 1.0
    return float((before - second.probabilities(images)).abs().max())


def _rounded(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def points_of(draws: Draws, z_dim: int) -> Tensor:
    """Latents (n, z_dim) of the seeds, or of the places between seeds and ends; scaled by the truncation."""
    points = latents_of(draws.seeds, z_dim)
    if draws.ends:
        points = slerp(points, latents_of(draws.ends, z_dim), torch.tensor(draws.shares))
    return points * draws.truncation


def _to_bytes(images: Tensor) -> Tensor:
    from raygan.models.gan import to_uint8

    return to_uint8(images)


def _from_array(pixels: Pixels) -> Tensor:
    """(n, S, S, 3) as the channels-last (n, 3, S, S) that it already is in memory."""
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # arrays out of Ray's object store are read-only, which torch warns of
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
