"""What runs in each training worker.

`train_worker` is the loop that Ray Train starts on each rank: a `GanStep` over the rank's rows of each global batch,
with metrics, pictures, checkpoints and measurements when the `Schedule` says so. It tells the driver about them with
`raygan.training.events`. Nothing here speaks to MLflow, so a worker neither imports it nor waits for it.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import ray.train
import torch
from ray.train import CheckpointConsistencyMode, ReportedCheckpointStatus
from ray.util.queue import Queue

from raygan.data.batches import BatchStream
from raygan.data.photos import Photos
from raygan.models.gan import Generator
from raygan.models.hardware import on_device, peak_resident_bytes, seconds_without_core
from raygan.runtime import capacity, storage
from raygan.training.build import new_step, this_rank
from raygan.training.checkpoints import load_training, save_training
from raygan.training.events import Collapse, Notice, Picture, Tick
from raygan.training.health import Health, spread
from raygan.training.inherit import Inheritance
from raygan.training.means import Means
from raygan.training.overfitting import mean_scores, splits
from raygan.training.reports import TO_MEASURE, measurement, written
from raygan.training.schedule import KINDS, Agenda, Due, Schedule
from raygan.training.settings import TrainSettings
from raygan.training.snapshots import Snapshots
from raygan.training.step import GanStep

if TYPE_CHECKING:
    from raygan.training.monitor import Monitor

#: What only the first rank measures.
_FIRST_RANKS = (
    "seconds",
    "minutes",
    "sample_spread",
    "without_core",
    "resident_megabytes",
    "peak_resident_megabytes",
)

#: Seconds, about, between two looks at the clock, and whether one of the training's nodes is about to be taken away.
LOOK_S = 5.0

#: Seconds, at most, in which Ray Train says how earlier measurements stand: it stores the last report first.
_STORED_S = 10.0

#: Samples from which each log tells whether samples still differ.
SPREAD_IMAGES = 16


@dataclass(frozen=True)
class WorkerTask:
    """What each worker is given.

    Attributes:
        settings: of the training.
        schedule: when things happen.
        photos: the training photos.
        held_out: the validation photos.
        fingerprint: of the shards.
        labels: classes of a conditional generator; empty for an unconditional one.
        learned_from: labels of the training photos.
        events: queue to the driver.
        folder: the run's folder.
        begin_from: another run's checkpoint, from which a run without its own starts.
        weights: address of a folder whose weights a run without a checkpoint begins with.
        monitor: measures quality.
        monitor_cores: cores that a measurement beside the workers reserves; 0 if the first worker measures.
    """

    settings: TrainSettings
    schedule: Schedule
    photos: Photos
    held_out: Photos
    fingerprint: str
    labels: tuple[str, ...]
    learned_from: tuple[str, ...]
    events: Queue
    folder: str
    begin_from: ray.train.Checkpoint | None = None
    weights: str | None = None
    monitor: Monitor | None = None
    monitor_cores: float = 0.0


def train_worker(config: dict[str, Any]) -> None:
    """One rank's training, under Ray Train, which has set up the process group."""
    task: WorkerTask = config["task"]
    settings = task.settings
    share, device = this_rank()
    step = new_step(settings, task.schedule, task.labels, device, share)
    before: dict[str, Any] = {}
    checkpoint = ray.train.get_checkpoint() or task.begin_from
    if checkpoint:
        with checkpoint.as_directory() as folder:
            before = load_training(Path(folder), step)
    elif task.weights:
        with storage.checkpoint_at(task.weights).as_directory() as folder:
            Inheritance.of(Path(folder), step.networks).give(step)
    stream = BatchStream(task.photos, settings.batch_size, settings.seed, share)
    TrainLoop(task, step, stream, before).run()


class TrainLoop:
    """Steps through batches and reports on schedule."""

    def __init__(self, task: WorkerTask, step: GanStep, stream: BatchStream, before: dict[str, Any]):
        """Prepare the loop.

        Args:
            task: what to do.
            step: in the state to continue from.
            stream: this rank's batches.
            before: the `about` of the checkpoint that is resumed; empty for a new run.
        """
        self.task, self.step, self.stream, self.schedule = task, step, stream, task.schedule
        self.settings, self.first_rank = task.settings, step.share.rank == 0
        self.means, self.health = Means(step.options.batch_size), Health()
        self.scored = splits(task.photos, task.held_out)
        self.snapshots = Snapshots(step, task.photos, task.settings.seed)
        self.before = before
        self.minutes_before = float(before.get("minutes", 0.0))
        self.began = self.logged = self.ticked = time.monotonic()
        self.waited = seconds_without_core()
        self.first_batch = step.batches
        self.noticed, self.look_every = False, 1
        self.minutes = self.minutes_before
        # Each change of the rates since the first image, also those of the run whose weights were taken over.
        self.rates: list[list[float]] = list(before.get("rates", []))
        self.agenda = Agenda(task.schedule, step.images_seen, self.minutes)
        # Minutes that the last event of each kind took on the first rank, for which the others wait.
        self.costs, self.paid = dict.fromkeys(KINDS, 0.0), 0.0

    def run(self) -> None:
        """Train to the end of the schedule, or until the training dies."""
        self._tell(Tick(self.step.images_seen))
        if self.step.images_seen == 0:
            self._snapshot()
        elif "metrics" in self.before:
            # An earlier session may have been killed between a checkpoint and its record: fill the gap.
            ray.train.report(self.before["metrics"])
        for reals, classes in on_device(self.stream.starting_at(self.step.batches), self.step.device):
            if self.step.images_seen >= self.schedule.total:
                break
            if not self.rates or self.rates[-1][1:] != [*self.step.rates]:
                self.rates.append([self.step.images_seen, *self.step.rates])
            self.means.add(self.step.step(reals, classes))
            self._tick()
            noticed = self._look()
            due = self.agenda.due(self.step.images_seen, self.minutes)
            if (due.log or noticed) and not self._log(due, keep=noticed):
                break

    def _look(self) -> bool:
        """Every few seconds: look at the clock, and return whether Ray has just announced the loss of a node.

        A collective call: all ranks look at the same batches, and what the first one knows counts.
        """
        if self.step.batches % self.look_every:
            return False
        monitor = self.task.monitor
        measurable = not monitor or self.task.monitor_cores > 0 or (self.first_rank and monitor.ready)
        known = (time.monotonic() - self.began, float(measurable), *self.costs.values())
        seconds, measurable_there, *costs = self._first_ranks(known)
        self.agenda.learn(dict(zip(self.costs, costs, strict=True)), measurable=measurable_there > 0)
        self.minutes = self.minutes_before + seconds / 60
        done = self.step.batches - self.first_batch
        # In a short run with a time limit, logs are due more often than every few seconds.
        pause = min(LOOK_S, 30 * self.schedule.log.minutes)
        self.look_every = max(1, round(pause * done / max(seconds, 1e-9)))
        if self.noticed:
            return False
        self.noticed = ray.train.get_preemption_info() is not None
        if self.noticed:
            self._tell(Notice(self.step.images_seen / 1000))
        return self.noticed

    def _first_ranks(self, values: Sequence[float]) -> list[float]:
        """The first rank's numbers, on all ranks."""
        if self.step.share.world_size == 1:
            return [*values]
        given = values if self.first_rank else [0.0] * len(values)
        shared = torch.tensor(given, dtype=torch.float64, device=self.step.device)
        torch.distributed.all_reduce(shared)
        found: list[float] = shared.tolist()
        return found

    @contextmanager
    def _paying(self, kind: str) -> Iterator[None]:
        """Keep what an event of that kind, which comes with a log, takes."""
        began = time.monotonic()
        yield
        self.costs[kind] = (time.monotonic() - began) / 60
        self.paid += self.costs[kind]

    def _log(self, due: Due, *, keep: bool) -> bool:
        """Report, with pictures and a checkpoint where they are due; returns whether to go on.

        All ranks come to the same decisions, because they decide by numbers summed over ranks.
        """
        self.paid = 0.0
        metrics = self._metrics()
        trouble = self.health.diagnose(metrics)
        if trouble:
            ray.train.report(metrics)
            self._tell(Collapse(trouble, metrics["kimg"]))
            return False
        if due.snapshot:
            with self._paying("snapshot"):
                self._snapshot()
        self._report(metrics, keep=keep or due.checkpoint, measure=due.quality)
        self.costs["log"] = (time.monotonic() - self.logged) / 60 - self.paid
        return not due.last

    def _metrics(self) -> dict[str, float]:
        """Means since the last log over all ranks, and how far the run is. A collective call."""
        if self.step.device.type == "cuda":
            torch.cuda.synchronize(self.step.device)  # steps are queued: their work must be done when the clock is read
        now, waited = time.monotonic(), seconds_without_core()
        own = dict.fromkeys([*_FIRST_RANKS, *self.scored], 0.0)
        if self.first_rank:
            # Clocks differ between ranks, so the first one's counts; samples and memory need only be looked at once.
            own = {
                "seconds": now - self.logged,  # with the pauses of the last log
                "minutes": (now - self.began) / 60,
                "sample_spread": float(spread(self.snapshots.samples(SPREAD_IMAGES))),
                "without_core": (waited - self.waited) / max((now - self.logged) * torch.get_num_threads(), 1e-9),
                **mean_scores(self.step, self.scored),
                "resident_megabytes": psutil.Process().memory_info().rss / 2**20,
                "peak_resident_megabytes": peak_resident_bytes() / 2**20,
            }
        self.logged, self.waited = now, waited
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
            "learning_rate_share": self.step.learning_rate_share,
        }

    def _report(self, metrics: dict[str, float], *, keep: bool, measure: bool) -> None:
        """Report to Ray Train, with a checkpoint if it is to be kept, and have the checkpoint measured if asked."""
        if not (keep and self.first_rank):
            ray.train.report(metrics)
            return
        about = {
            "label": self.settings.label or "all",
            "labels": list(self.task.labels),
            "learned_from": list(self.task.learned_from),
            "objective": self.settings.objective,
            "quality_network": self.settings.quality_network if self.schedule.quality else None,
            "fingerprint": self.task.fingerprint,
            "kimg": metrics["kimg"],
            "minutes": metrics["minutes"],
            "rates": self.rates,
            "metrics": metrics,
        }
        folder = tempfile.mkdtemp(prefix="raygan-checkpoint-")
        with self._paying("checkpoint"):
            save_training(Path(folder), self.step, about)
        reported: dict[str, Any] = {**metrics}
        monitor = self.task.monitor if measure and self._measures_here() else None
        if monitor:
            generator = cast(Generator, copy.deepcopy(self.step.ema.module))
            with self._paying("quality"):
                measured = monitor.try_to_measure(generator.cpu(), self.step.images_seen)
            reported |= measurement(*measured) if measured else {}
        elif measure:
            reported[TO_MEASURE] = True
        # Training goes on while Ray copies the files to storage, has them measured, and deletes the folder.
        ray.train.report(
            reported,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            validation=measure and not monitor,
        )

    def _measures_here(self) -> bool:
        """Whether to measure in this worker: beside the workers, the measurement would wait for another job's cores."""
        monitor, cores = self.task.monitor, self.task.monitor_cores
        if not (monitor and cores):
            return True
        # A measurement that waits for the reference may as well wait for cores, but the training can't.
        if not monitor.ready or capacity.free_cores() >= cores:
            return False
        # This training's earlier measurement may have the cores. Measurements come one after another.
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, _STORED_S)
        return all(each.status is not ReportedCheckpointStatus.PENDING_VALIDATION for each in reported)

    def _snapshot(self) -> None:
        """Write a picture of how far the training is, and tell the driver."""
        if not self.first_rank:
            return
        path = f"pictures/samples-{self.step.images_seen:09d}-images.png"
        self._tell(written(self.task.folder, path, self.snapshots.png()))

    def _tick(self) -> None:
        """Tell the driver every two seconds how far the training is."""
        if time.monotonic() - self.ticked > 2:
            self._tell(Tick(self.step.images_seen))
            self.ticked = time.monotonic()

    def _tell(self, event: Tick | Picture | Notice | Collapse) -> None:
        """Send the driver an event from the first rank, without waiting."""
        if self.first_rank:
            self.task.events.actor.put_nowait.remote(event)
