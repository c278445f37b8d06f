"""Replicas: generators and classifiers in a process of their own, computing for the gateway.

1. Any replica serves any version of any registered model, and holds those last used. Every call names its versions, so
   an answer comes from one version however many replicas there are, and neither a new version nor a new label restarts
   anything. A replica fetches a missing version while it goes on serving the others.
2. A call is one request; the `Executor` of a version splits and joins its requests into batches.
3. Samples are drawn and classified in one call, so pixels cross processes only once.
4. Replicas answer with arrays; the gateway encodes pictures.
5. If a replica dies, `raygan.serve.calls` repeats its requests on another.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from raygan.errors import RayganError, last_line
from raygan.machine import cores, free_memory, release_memory
from raygan.models.drawing import BATCH, Drawing
from raygan.models.fuse import fast_classifier
from raygan.models.hardware import computes_bf16
from raygan.models.latents import latents_of, slerp
from raygan.runtime import capacity
from raygan.serve.calls import NotLoaded
from raygan.serve.executor import Executor, Threads, is_batch_invariant
from raygan.serve.logs import ORIGIN, Origin
from raygan.serve.messages import ClassifyRequest, Drawn, ModelVersion, Pixels, Predictions, SampleRequest
from raygan.serve.model_store import Fetch, Files, Finish, size_of, write_files
from raygan.serve.precision import MAX_BF16_SHIFT, probability_shift
from raygan.serve.schemas import MAX_MOVES
from raygan.serve.settings import ServeSettings

if TYPE_CHECKING:
    from raygan.models.gan import Generator
    from raygan.models.googlenet import Classifier

log = logging.getLogger("raygan.serve")

#: Memory for loading a version, in sizes of its files: the files, the weights, two networks, and a margin.
_COPIES = 6


@dataclass(frozen=True)
class Loaded:
    """A version that is ready.

    Attributes:
        model: the generator or the classifier.
        executor: around its network.
        image_size: side of its images, in px.
        directions: of a generator, the strongest ones (count, z_dim); none of a classifier.
        size: of its files, in bytes; it takes at least as much memory.
    """

    model: Generator | Classifier
    executor: Executor
    image_size: int
    directions: Tensor
    size: int = 0

    @property
    def description(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "labels": list(self.model.labels),
            "directions": len(self.directions),
            "padded": self.executor.padded,
        }


class Replica:
    """Versions of models, loaded on demand.

    Args:
        settings: of the service.
        fetch: gets a version's files.
        finish: called once loading a version has ended without killing this process, or was not tried.

    Attributes:
        rehearse: loads a version's files elsewhere before they are loaded here, and finds out whether its batches must
            be padded; None while nothing is served yet.
    """

    rehearse: Callable[[Files, ServeSettings], bool] | None = None

    def __init__(self, settings: ServeSettings, fetch: Fetch, finish: Finish | None = None):
        self._settings, self._fetch, self._finish = settings, fetch, finish
        self._device = capacity.own_device()
        self._versions: OrderedDict[ModelVersion, asyncio.Task[Loaded]] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, "load")
        self._threads = Threads((settings.threads or cores()) if self._device.type == "cpu" else 1)
        torch.set_num_threads(1)  # parallelism comes from the executors' threads
        # cuDNN would pick the fastest kernels by trial, and another replica's pixels would differ.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Load a version unless it is loaded, and describe it. Raises RayganError if it can't be fetched or read."""
        return (await self._loaded(model)).description

    async def draw(self, model: ModelVersion, request: SampleRequest) -> tuple[Drawn, float]:
        """A request's images, classified if it names a judge, and the seconds spent computing."""
        with _logged(request.origin):
            return await self._draw(model, request)

    async def classify(self, model: ModelVersion, request: ClassifyRequest) -> tuple[Predictions, float]:
        """Predictions for a request's images, and the seconds spent computing."""
        with _logged(request.origin):
            return await self._classify(model, request)

    async def _draw(self, model: ModelVersion, request: SampleRequest) -> tuple[Drawn, float]:
        loaded = await self._loaded_for_request(model)
        started = time.perf_counter()
        generator = cast("Generator", loaded.model)
        inputs = [latents_for(request, generator.settings.z_dim, loaded.directions)]
        if labels := generator.labels:
            inputs.append(torch.full((len(request),), labels.index(request.label), dtype=torch.int64))
        pixels = (await loaded.executor.run(*inputs)).numpy()
        seconds = time.perf_counter() - started
        if request.judge is None:
            return Drawn(pixels), seconds
        predictions, more = await self._classify(request.judge, ClassifyRequest(pixels))
        return Drawn(pixels, predictions), seconds + more

    async def _classify(self, model: ModelVersion, request: ClassifyRequest) -> tuple[Predictions, float]:
        loaded = await self._loaded_for_request(model)
        started = time.perf_counter()
        probabilities = await loaded.executor.run(_to_tensor(request.images), alone=request.alone)
        return Predictions(tuple(loaded.model.labels), probabilities.numpy()), time.perf_counter() - started

    async def _loaded_for_request(self, model: ModelVersion) -> Loaded:
        """Raises NotLoaded: this replica can't load it, although another has."""
        try:
            return await self._loaded(model)
        except Exception as error:
            raise NotLoaded(f"{model}: {last_line(error)}") from error

    async def _loaded(self, model: ModelVersion) -> Loaded:
        task = self._versions.get(model)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.ensure_future(self._load_version(model))
            self._versions[model] = task
        self._versions.move_to_end(model)
        # Shielded: a cancelled request must not cancel a load that others wait for.
        return await asyncio.shield(task)

    async def _load_version(self, model: ModelVersion) -> Loaded:
        files = await self._fetch(model)
        try:
            loaded = await self._load(model, files)
        except Exception as error:
            # Otherwise the traceback would keep the files alive until the next garbage collection.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            del files
        while len(self._versions) > self._settings.loaded_versions:
            old = next(iter(self._versions.values()))
            if not old.done():
                break
            self._versions.popitem(last=False)
        return loaded

    async def _load(self, model: ModelVersion, files: Files) -> Loaded:
        try:
            self._make_room(size_of(files))
        except RayganError:
            if self._finish:
                await self._finish(model, False)
            raise
        loop = asyncio.get_running_loop()
        padded = None
        if self.rehearse:
            padded = await loop.run_in_executor(self._loader, self.rehearse, files, self._settings)
        try:
            return await loop.run_in_executor(self._loader, self._load_files, files, padded)
        finally:  # unless loading kills this process, or one that rehearsed it
            if self._finish:
                await self._finish(model, True)

    def _make_room(self, size: int) -> None:
        """Drop versions, the least recently used first, if there is too little memory to load files of this size.

        Raises:
            RayganError: dropping all of them would not be enough; none is dropped.
        """
        needed, free = _COPIES * size, free_memory()
        done = {model: task for model, task in self._versions.items() if task.done()}
        held = {
            model: task.result().size for model, task in done.items() if not task.cancelled() and not task.exception()
        }
        if needed > free + sum(held.values()):
            raise RayganError(f"loading it takes about {needed / 1e6:.0f} MB of memory; {free / 1e6:.0f} MB are free")
        if needed <= free:
            return
        for model, freed in held.items():
            if needed <= free:
                break
            log.info("dropped %s for lack of memory; the next request loads it again", model)
            del self._versions[model]
            free += freed
        release_memory()

    def _load_files(self, files: Files, padded: bool | None) -> Loaded:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_files(files, Path(scratch))
            load = self._load_generator if "generator.json" in files else self._load_classifier
            return replace(load(folder, padded), size=size_of(files))

    def _load_generator(self, folder: Path, padded: bool | None) -> Loaded:
        from raygan.models.gan import load_generator

        drawing = Drawing(load_generator(folder)[0], self._device)
        # Pixels must not depend on the rest of the batch, to the last bit.
        padded = self._must_pad(padded, drawing.compute, drawing.example(self._settings.batch_images))
        executor = self._executor(drawing.compute, padded=padded)
        return Loaded(
            drawing.generator, executor, drawing.generator.settings.image_size, _directions_of(drawing.generator)
        )

    def _load_classifier(self, folder: Path, padded: bool | None) -> Loaded:
        from raygan.models.googlenet import load_classifier, to_input

        classifier = load_classifier(folder)
        fast = fast_classifier(classifier, self._device, bf16=False)
        bf16 = computes_bf16(self._device)
        if bf16:
            coarse = fast_classifier(classifier, self._device, bf16=True)
            bf16 = probability_shift(fast, coarse, self._device) < MAX_BF16_SHIFT
            fast = coarse if bf16 else fast

        def compute(images: Tensor) -> Tensor:
            return fast.probabilities(images.to(self._device)).cpu()

        @torch.inference_mode()
        def logits(images: Tensor) -> Tensor:  # a probability near 0 or 1 would hide the rounding
            scores: Tensor = fast.net(to_input(images, fast.image_size))
            return scores

        size = classifier.image_size
        draws = torch.Generator().manual_seed(0)
        example = torch.randint(256, (self._settings.batch_images, 3, size, size), generator=draws, dtype=torch.uint8)
        # In float32 nobody sees the rounding, and where it could matter the gateway classifies again. In bfloat16 it
        # would be visible.
        padded = bf16 and self._must_pad(padded, logits, [example])
        return Loaded(classifier, self._executor(compute, padded=padded), size, torch.empty(0, 0))

    def _executor(self, compute: Callable[..., Tensor], *, padded: bool) -> Executor:
        batch = self._settings.batch_images
        if padded:
            batch = min(batch, BATCH)
        return Executor(compute, self._threads, batch=batch, padded=padded)

    def _must_pad(self, found: bool | None, compute: Callable[..., Tensor], example: Sequence[Tensor]) -> bool:
        """Whether rows depend on the rest of their batch here. found: by the rehearsal. example: a whole batch."""
        if self._device.type != "cpu":
            return True
        return not is_batch_invariant(compute, example, self._settings.batch_images) if found is None else found


@contextmanager
def _logged(origin: Origin) -> Iterator[None]:
    """Log what happens, and an error's traceback, as part of the client's request."""
    ORIGIN.set(origin)
    try:
        yield
    except Exception as error:
        log.error("a replica failed: %s", last_line(error), exc_info=error)
        raise


def _directions_of(generator: Generator) -> Tensor:
    """The strongest directions of a generator; none where its architecture has none."""
    from raygan.models.directions import directions

    try:
        return directions(generator, min(MAX_MOVES, generator.settings.z_dim))
    except RayganError:
        return torch.empty(0, generator.settings.z_dim)


def latents_for(request: SampleRequest, z_dim: int, directions: Tensor | None = None) -> Tensor:
    """Latents (n, z_dim) of the seeds, or of points between seeds and end seeds, scaled by the truncation and moved."""
    points = latents_of(request.seeds, z_dim)
    if request.end_seeds:
        points = slerp(points, latents_of(request.end_seeds, z_dim), torch.tensor(request.fractions))
    points = points * request.truncation
    if request.moves and directions is not None:
        points = points + torch.tensor(request.moves) @ directions[: len(request.moves)]
    return points


def _to_tensor(pixels: Pixels) -> Tensor:
    """(n, S, S, 3) as the channels-last (n, 3, S, S) that it already is in memory."""
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # arrays from Ray's object store are read-only, and torch warns about that
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
