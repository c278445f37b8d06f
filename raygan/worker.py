"""What runs in every training worker, and what it tells the driver.

`train_worker` is the loop that Ray Train starts on each rank: a `GanStep` over the rank's rows of each global
batch, and at the end of an epoch metrics, pictures and a checkpoint. `Tick`, `Picture` and `Report` are its
news for the driver. Nothing here speaks to MLflow, so that a worker neither waits for it nor imports it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch
from pydantic import BaseModel
from ray.util.queue import Queue

from raygan import pictures, storage
from raygan.batches import BatchStream, Photos
from raygan.config import TrainSettings
from raygan.gan.checkpoint import load_training, save_training
from raygan.gan.networks import NetworkSettings, draw_latents
from raygan.gan.objectives import Terms
from raygan.gan.step import GanStep, Share, StepSettings, seeded, to_uint8

#: Images in each half of a sample grid, and in a row of it.
GRID_IMAGES, GRID_COLUMNS = 64, 8

T = TypeVar("T")


@dataclass(frozen=True)
class Tick:
    """Progress within an epoch."""

    batches: int


@dataclass(frozen=True)
class Picture:
    """A picture that rank 0 wrote under the run's folder."""

    path: str


@dataclass(frozen=True)
class Report:
    """Metrics of an epoch, the checkpoint being safe in storage."""

    metrics: dict[str, float]


class ForwardReports(ray.train.UserCallback):
    """Passes every report, once its checkpoint is safe, from Ray Train's controller to a queue."""

    def __init__(self, events: Queue):
        self._events = events

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        # Waits until the queue has it: the driver must find the last report when the training has returned.
        self._events.put(Report(numbers(metrics[0])))


def numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    """The numeric metrics of a report."""
    return {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class WorkerTask:
    """What every worker is given."""

    settings: TrainSettings
    photos: Photos
    events: Queue
    folder: str


def train_worker(config: dict[str, Any]) -> None:
    """One rank's training loop; runs under Ray Train, which has set up the process group."""
    task: WorkerTask = config["task"]
    settings = task.settings
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    step = GanStep(pick(NetworkSettings, settings), step_settings(settings, device), device, share)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            load_training(Path(folder), step)
    stream = BatchStream(task.photos.rows, task.photos.block, settings.batch_size, settings.seed, share)
    EpochLoop(task, step, stream).run()


class EpochLoop:
    """Steps through batches and reports at the end of every epoch."""

    def __init__(self, task: WorkerTask, step: GanStep, stream: BatchStream):
        self.task, self.step, self.stream = task, step, stream
        self.settings, self.first_rank = task.settings, step.share.rank == 0
        self.means = Means(step.settings.batch_size)
        self.epoch_began = self.ticked = time.monotonic()

    def run(self) -> None:
        per_epoch = self.stream.batches_per_epoch
        if self.first_rank:
            self.task.events.actor.put_nowait.remote(Tick(self.step.batches))
        if self.first_rank and self.step.batches == 0:
            self._snapshot(0)
        for reals in self.stream.starting_at(self.step.batches):
            if self.step.batches >= per_epoch * self.settings.epochs:
                break
            self.means.add(self.step.step(reals))
            self._tick()
            if self.step.batches % per_epoch == 0:
                self._end_epoch(self.step.batches // per_epoch)

    def _tick(self) -> None:
        """Tell the driver how far we are, every other second, without waiting for an answer."""
        if self.first_rank and time.monotonic() - self.ticked > 2:
            self.task.events.actor.put_nowait.remote(Tick(self.step.batches))
            self.ticked = time.monotonic()

    def _end_epoch(self, epoch: int) -> None:
        seconds = time.monotonic() - self.epoch_began
        metrics = {
            **self.means.take(self.step.share.world_size),
            "epoch": epoch,
            "kimg": self.step.images_seen / 1000,
            "images_per_second": self.stream.batches_per_epoch * self.settings.batch_size / seconds,
        }
        last = epoch == self.settings.epochs
        if self.first_rank and (last or epoch % self.settings.snapshot_every == 0):
            self._snapshot(epoch)
        if self.first_rank:
            self.task.events.actor.put_nowait.remote(Tick(self.step.batches))
        self._report(metrics, last or epoch % self.settings.checkpoint_every == 0)
        self.epoch_began = time.monotonic()

    def _report(self, metrics: dict[str, float], with_checkpoint: bool) -> None:
        if not (with_checkpoint and self.first_rank):
            ray.train.report(metrics)
            return
        about = {"label": self.settings.label or "all", "kimg": metrics["kimg"], "objective": self.settings.objective}
        with tempfile.TemporaryDirectory() as folder:
            save_training(Path(folder), self.step, about)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _snapshot(self, epoch: int) -> None:
        """Samples from latents that stay the same through the run, beside reals that do too."""
        latents = draw_latents(GRID_IMAGES, self.step.networks.z_dim, seeded(self.settings.seed, 0, "snapshot"))
        fakes = to_uint8(self.step.sample(latents))
        first = torch.from_numpy(self.task.photos.block(0).copy())
        reals = first[pictures.spread(GRID_IMAGES, len(first))]
        picture = pictures.side_by_side([("real", reals), (f"generated, epoch {epoch}", fakes)], GRID_COLUMNS)
        path = f"pictures/samples-epoch-{epoch:04d}.png"
        storage.write_bytes(storage.join(self.task.folder, path), pictures.png(picture))
        self.task.events.actor.put_nowait.remote(Picture(path))


class Means:
    """Means of per-image terms over an epoch and over all ranks, summed on the device meanwhile."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._sums: dict[str, torch.Tensor] = {}
        self._times: dict[str, int] = {}

    def add(self, terms: Terms) -> None:
        """Add one step's sums over this rank's images."""
        for name, value in terms.items():
            known = self._sums.get(name)
            self._sums[name] = value if known is None else known + value
            self._times[name] = self._times.get(name, 0) + 1

    def take(self, world_size: int) -> dict[str, float]:
        """The means so far; starts anew. A collective call when there are several ranks."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        means = {n: s / (self._times[n] * self._batch_size) for n, s in zip(names, sums.tolist(), strict=True)}
        self._sums, self._times = {}, {}
        return means


def step_settings(settings: TrainSettings, device: torch.device) -> StepSettings:
    """The step's settings, with precision "auto" decided for this device."""
    values = {field.name: getattr(settings, field.name) for field in fields(StepSettings)}
    values["augment"] = tuple(settings.augment)
    if settings.precision == "auto":
        values["precision"] = "bf16" if computes_bf16(device) else "fp32"
    return StepSettings(**values)


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run natively; emulated ones are tens of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick(kind: type[T], settings: BaseModel) -> T:
    """A dataclass filled from the settings fields of the same names."""
    return kind(**{field.name: getattr(settings, field.name) for field in fields(kind)})  # type: ignore[arg-type]
