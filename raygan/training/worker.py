"""What runs in every training worker, and what it tells the driver.

`train_worker` is the loop that Ray Train starts on each rank: a `GanStep` over the rank's rows of each global
batch, and metrics, pictures, checkpoints and judgements when the `Schedule` says so. It tells the driver
about them through `raygan.training.events`.
Nothing here speaks to MLflow, so that a worker neither waits for it nor imports it.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import ray.train
import torch
from ray.util.queue import Queue

from raygan import pictures
from raygan.data.batches import BatchStream, Photos
from raygan.models.distributed import Share
from raygan.models.gan import Generator, NetworkSettings, draw_latents, to_uint8
from raygan.models.hardware import keep_freed_memory, peak_resident_bytes, pick_precision
from raygan.models.latents import seeded
from raygan.runtime.runs import address_of
from raygan.runtime.settings import WorkerOptions
from raygan.training.checkpoints import load_training, save_training
from raygan.training.events import SCORE, Collapse, Notice, Picture, Quality, Report, Tick, written
from raygan.training.health import Health, spread
from raygan.training.objectives import Terms
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings
from raygan.training.step import GanStep, StepSettings

if TYPE_CHECKING:
    from raygan.training.monitor import Judge

#: Images in each half of a sample grid, and in a row of it.
GRID_IMAGES, GRID_COLUMNS = 64, 8

#: What the first rank alone measures.
_FIRST_RANKS = ("seconds", "minutes", "sample_spread", "resident_megabytes", "peak_resident_megabytes")

#: Seconds, about, between two looks whether a node of the training is about to be taken away.
NOTICE_S = 5.0

#: Samples that every log looks at, to see whether they still differ.
SPREAD_IMAGES = 16


class ForwardReports(ray.train.UserCallback):
    """Passes every report and judgement, once its checkpoint is safe, from Ray Train's controller to a queue."""

    def __init__(self, events: Queue, folder: str):
        self._events, self._folder = events, folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        numbers = dict(metrics[0])
        numbers.pop(SCORE, None)
        judged = numbers.pop("judged", None)
        # Waits until the queue has it: the driver must find the last report when the training has returned.
        self._events.put(Report(numbers))
        if judged:
            kept = address_of(self._folder, checkpoint)
            self._events.put(Quality(images=numbers["images"], checkpoint=kept, **judged))


@dataclass(frozen=True)
class WorkerTask:
    """What every worker is given.

    fingerprint: the shards'. labels: classes of a conditional generator, else empty. begin_from: another run's
    checkpoint that a run without one of its own goes on from. judge: what the first worker measures quality with, where
    the cluster has no room for that beside the workers.
    """

    settings: TrainSettings
    schedule: Schedule
    photos: Photos
    fingerprint: str
    labels: tuple[str, ...]
    events: Queue
    folder: str
    begin_from: ray.train.Checkpoint | None = None
    judge: Judge | None = None


def train_worker(config: dict[str, Any]) -> None:
    """One rank's training loop; runs under Ray Train, which has set up the process group."""
    task: WorkerTask = config["task"]
    settings = task.settings
    share, device = place_of(settings)
    networks = network_settings(settings, task.labels)
    step = GanStep(networks, step_settings(settings, task.schedule, device), device, share)
    before: dict[str, Any] = {}
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and task.begin_from:
        checkpoint = task.begin_from
    if checkpoint:
        with checkpoint.as_directory() as folder:
            before = load_training(Path(folder), step)
    stream = BatchStream(task.photos.rows, task.photos.block, settings.batch_size, settings.seed, share)
    TrainLoop(task, step, stream, before).run()


def place_of(options: WorkerOptions) -> tuple[Share, torch.device]:
    """This rank's share and device under Ray Train; torch takes as many threads as cores are reserved and there."""
    torch.set_num_threads(max(1, min(int(options.cpus_per_worker), os.cpu_count() or 1)))
    keep_freed_memory()
    context = ray.train.get_context()
    return Share(context.get_world_rank(), context.get_world_size()), ray.train.torch.get_device()


class TrainLoop:
    """Steps through batches and reports on the schedule.

    before: what the checkpoint that the run goes on from says about itself; empty for a new run.
    """

    def __init__(self, task: WorkerTask, step: GanStep, stream: BatchStream, before: dict[str, Any]):
        self.task, self.step, self.stream, self.schedule = task, step, stream, task.schedule
        self.settings, self.first_rank = task.settings, step.share.rank == 0
        self.means, self.health = Means(step.settings.batch_size), Health()
        self.before = before
        self.minutes_before = float(before.get("minutes", 0.0))
        self.began = self.logged = self.ticked = time.monotonic()
        self.noticed, self.look_every = False, self.schedule.log

    def run(self) -> None:
        """Train to the end of the schedule, or until the training has died."""
        self._tell(Tick(self.step.batches))
        if self.step.batches == 0:
            self._snapshot()
        elif "metrics" in self.before:
            # Whoever was killed between a checkpoint and its record left a gap, which this fills.
            ray.train.report(self.before["metrics"])
        for reals, classes in self.stream.starting_at(self.step.batches):
            if self.step.batches >= self.schedule.total:
                break
            self.means.add(self.step.step(reals, classes))
            self._tick()
            last = self.step.batches == self.schedule.total
            noticed = self._notice()
            due = last or noticed or self.step.batches % self.schedule.log == 0
            if due and not self._log(last, keep=noticed):
                break

    def _notice(self) -> bool:
        """Whether a node is about to be taken away that was not known to be. Every rank looks, at the same batches."""
        if self.noticed or self.step.batches % self.look_every:
            return False
        self.noticed = ray.train.get_preemption_info() is not None
        if self.noticed:
            self._tell(Notice(self.step.images_seen / 1000))
        return self.noticed

    def _log(self, last: bool, *, keep: bool) -> bool:
        """Report, with pictures and a checkpoint where they are due; whether to go on.

        Every rank comes to the same decisions, since they are taken on numbers summed over ranks.
        """
        metrics = self._metrics()
        trouble = self.health.diagnose(metrics)
        last = last or metrics["minutes"] >= self.schedule.minutes
        if trouble:
            ray.train.report(metrics)
            self._tell(Collapse(trouble, metrics["kimg"]))
            return False
        batch, schedule = self.step.batches, self.schedule
        if last or batch % schedule.snapshot == 0:
            self._snapshot()
        judged = schedule.quality > 0 and (last or batch % schedule.quality == 0)
        keep = keep or last or judged or batch % schedule.checkpoint == 0
        self._report(metrics, keep=keep, judge=judged)
        self.look_every = max(1, round(NOTICE_S * metrics["images_per_second"] / self.settings.batch_size))
        self.logged = time.monotonic()
        return not last

    def _metrics(self) -> dict[str, float]:
        """Means since the last log, over all ranks, and where the run stands. A collective call."""
        own = dict.fromkeys(_FIRST_RANKS, 0.0)
        if self.first_rank:
            # The ranks' clocks differ; the first one's counts, and one look at the samples and the memory is enough.
            own = {
                "seconds": time.monotonic() - self.logged,
                "minutes": (time.monotonic() - self.began) / 60,
                "sample_spread": float(spread(self._samples(SPREAD_IMAGES))),
                "resident_megabytes": psutil.Process().memory_info().rss / 2**20,
                "peak_resident_megabytes": peak_resident_bytes() / 2**20,
            }
        batches = self.means.batches
        means = self.means.take(self.step.share.world_size, own)
        seconds, minutes = means.pop("seconds"), means.pop("minutes")
        return {
            **means,
            "epoch": self.step.batches / self.stream.batches_per_epoch,
            "kimg": self.step.images_seen / 1000,
            "images": self.step.images_seen,
            "minutes": self.minutes_before + minutes,
            "images_per_second": batches * self.settings.batch_size / max(seconds, 1e-9),
            "learning_rate_share": self.step.settings.rate(self.step.images_seen),
        }

    def _report(self, metrics: dict[str, float], *, keep: bool, judge: bool) -> None:
        if not (keep and self.first_rank):
            ray.train.report(metrics)
            return
        about = {
            "label": self.settings.label or "all",
            "labels": list(self.task.labels),
            "objective": self.settings.objective,
            "fingerprint": self.task.fingerprint,
            "kimg": metrics["kimg"],
            "minutes": metrics["minutes"],
            "metrics": metrics,
        }
        folder = tempfile.mkdtemp(prefix="raygan-checkpoint-")
        save_training(Path(folder), self.step, about)
        news: dict[str, Any] = {**metrics}
        own = self.task.judge if judge else None
        if own:
            generator = cast(Generator, copy.deepcopy(self.step.ema.module))
            found, kid = own.measure(generator.cpu(), self.step.images_seen)
            news |= {SCORE: -kid, "judged": {"metrics": found, "kid": kid}}
        # The step goes on while the files are copied to storage and judged; Ray deletes the folder afterwards.
        ray.train.report(
            news,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            validation=judge and not own,
        )

    def _snapshot(self) -> None:
        """Write a grid of fixed reals beside generated images of fixed latents, and tell of it."""
        if not self.first_rank:
            return
        kimg = self.step.images_seen / 1000
        fakes = to_uint8(self._samples(GRID_IMAGES)).cpu()
        panels = [("real", self._reals()), (f"generated, {kimg:.3g} kimg", fakes)]
        picture = pictures.side_by_side(panels, GRID_COLUMNS)
        path = f"pictures/samples-{self.step.images_seen:09d}-images.png"
        self._tell(written(self.task.folder, path, pictures.png(picture)))

    def _samples(self, count: int) -> torch.Tensor:
        """Images (count, 3, S, S) in [-1, 1] of fixed latents, of each class in turn."""
        latents = draw_latents(count, self.step.networks.z_dim, seeded(self.settings.seed, 0, "grid"))
        classes = torch.arange(count) % len(self.task.labels) if self.task.labels else None
        return self.step.sample(latents, classes)

    def _reals(self) -> torch.Tensor:
        """Real images (GRID_IMAGES, 3, S, S), spread evenly over all shards."""
        photos = self.task.photos
        return torch.from_numpy(photos.pixels(photos.spread(GRID_IMAGES)))

    def _tick(self) -> None:
        """Tell the driver how far we are, every other second."""
        if time.monotonic() - self.ticked > 2:
            self._tell(Tick(self.step.batches))
            self.ticked = time.monotonic()

    def _tell(self, event: Tick | Picture | Notice | Collapse) -> None:
        """Send the driver an event from the first rank, without waiting for an answer."""
        if self.first_rank:
            self.task.events.actor.put_nowait.remote(event)


class Means:
    """Means of per-image terms over batches and ranks, summed on the device meanwhile.

    Attributes: `batches`, added since the last `take`.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._sums: dict[str, torch.Tensor] = {}
        self._times: dict[str, int] = {}
        self.batches = 0

    def add(self, terms: Terms) -> None:
        """Add one step's sums over this rank's images."""
        self.batches += 1
        for name, value in terms.items():
            known = self._sums.get(name)
            self._sums[name] = value if known is None else known + value
            self._times[name] = self._times.get(name, 0) + 1

    def take(self, world_size: int, own: dict[str, float]) -> dict[str, float]:
        """The means so far, and the numbers `own` summed over ranks; starts anew. A collective call."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        sums = torch.cat([sums, sums.new_tensor(list(own.values()))])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        totals = sums.tolist()
        means = {n: s / (self._times[n] * self._batch_size) for n, s in zip(names, totals, strict=False)}
        self._sums, self._times, self.batches = {}, {}, 0
        return means | dict(zip(own, totals[len(names) :], strict=True))


def network_settings(settings: TrainSettings, labels: tuple[str, ...]) -> NetworkSettings:
    """The networks of a training; labels: classes of a conditional generator, else empty."""
    return NetworkSettings(
        image_size=settings.image_size,
        z_dim=settings.z_dim,
        width=settings.width,
        critic_norm=settings.critic_norm,
        labels=labels,
    )


def step_settings(settings: TrainSettings, schedule: Schedule, device: torch.device) -> StepSettings:
    """The step's settings, with precision "auto" decided for this device."""
    values = {field.name: getattr(settings, field.name) for field in fields(StepSettings) if field.name != "total_kimg"}
    values["augment"] = tuple(settings.augment)
    values["total_kimg"] = schedule.total * settings.batch_size / 1000
    values["precision"] = pick_precision(settings.precision, device)
    return StepSettings(**values)
