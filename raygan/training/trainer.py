"""One run on Ray Train as the driver sees it: its inputs, its start and its outcome."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray
import ray.train
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer
from tqdm import tqdm

from raygan import tracking
from raygan.data.photos import Photos
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.runtime import cluster, storage
from raygan.runtime.progress import InBackground, follow
from raygan.runtime.runs import RunRecord, address_of
from raygan.tracking.callback import MLflowCallback
from raygan.training.events import Collapse, Quality
from raygan.training.history import History
from raygan.training.monitor import VALIDATION_PHOTOS, Monitor, patience_s, start_measuring, train_photos
from raygan.training.progress import MeasuringStuckError, Progress
from raygan.training.reports import SCORE, ForwardReports
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings
from raygan.training.source import BEGUN_FROM
from raygan.training.worker import WorkerTask, train_worker

#: Seconds that a worker waits for the others before it considers them dead.
_COLLECTIVE_S = 600

#: Where Ray Train lists a run's checkpoints, in the run's folder.
_SNAPSHOT = "checkpoint_manager_snapshot.json"

#: Seconds between two checks whether an elastic training can have more workers.
_RESIZE_S = 30.0


@dataclass(frozen=True)
class Shared:
    """What the trainings of a search have in common.

    Attributes:
        photos: the training photos.
        held_out: the validation photos.
        reference: the future `Reference` of the monitor.
        monitor_cores: cores that each measurement may reserve.
    """

    photos: Photos
    held_out: Photos
    reference: ray.ObjectRef
    monitor_cores: float


@dataclass(frozen=True)
class TrialTraining:
    """A training that is a trial of a search. It registers no model.

    Attributes:
        shared: what it has in common with other trials.
        parent_run: the search's MLflow run.
        told: called with each measurement.
        begin_from: another trial's checkpoint to start from.
    """

    shared: Shared
    parent_run: str
    told: Callable[[Quality], None]
    begin_from: ray.train.Checkpoint | None = None


class CollapsedError(RayganError):
    """The training has died; resuming or repeating it would not help."""


@dataclass(frozen=True)
class Outcome:
    """What a training left.

    Attributes:
        chosen: the best checkpoint by KID, or the last where KID was not measured.
        last: the last checkpoint.
        chosen_metrics: what was measured of the chosen one.
        last_metrics: the latest value of each metric.
        images: real images seen.
    """

    chosen: ray.train.Checkpoint
    last: ray.train.Checkpoint
    chosen_metrics: dict[str, float]
    last_metrics: dict[str, float]
    images: int


class Training:
    """Runs a training under Ray Train."""

    def __init__(
        self,
        settings: TrainSettings,
        schedule: Schedule,
        run: RunRecord,
        data: DataSet,
        photos: Photos,
        held_out: Photos,
        log: tracking.Run,
        trial: TrialTraining | None,
    ):
        self.settings, self.schedule, self.run, self.log, self.trial = settings, schedule, run, log, trial
        self.data, self.photos, self.held_out = data, photos, held_out
        self.events = cluster.queue()
        self.history = History(storage.join(run.folder, "metrics.jsonl"))

    def fit(self, resources: dict[str, float]) -> Outcome:
        """Train, following the events.

        Args:
            resources: what each worker reserves.

        Raises:
            CollapsedError: the training collapsed.
            RayganError: it failed.
        """
        check_snapshot(self.run)
        monitor, cores = self._monitor() if self.schedule.quality else (None, 0.0)
        cluster.poll_training_often()
        stopped = threading.Event()

        def fit() -> ray.train.Result:
            return outlive_controllers(
                lambda: self._trainer(resources, monitor, cores).fit(), self.settings.max_failures, stopped
            )

        fitting = InBackground(fit, "training", self.run.folder)
        told = self.trial.told if self.trial else None
        patience = monitor.patience_s if monitor else math.inf
        with Progress(self.schedule, self.run.folder, self.history, self.log, told, patience) as progress:
            try:
                result = follow(self.events, fitting, progress.handle, progress.look)
            except MeasuringStuckError:
                filesystem, path = storage.resolve(self.run.folder)
                result = ray.train.Result.from_path(path, filesystem)
            finally:
                stopped.set()
            progress.catch_up(result)
        if progress.collapse:
            self._collapsed(progress.collapse, result)
        if result.checkpoint is None:
            raise RayganError(f"run {self.run.name} ended without a checkpoint")
        chosen, images = _best(result)
        return Outcome(chosen, result.checkpoint, self.history.at(images), self.history.latest, images=progress.images)

    def _trainer(self, resources: dict[str, float], monitor: Monitor | None, monitor_cores: float) -> TorchTrainer:
        settings = self.settings
        validation = None
        if monitor and monitor_cores:
            # A trial's placement group has no room for a measurement; the cluster has.
            place = {"num_cpus": monitor_cores, "scheduling_strategy": "DEFAULT"}
            given_up = ValidationTaskConfig(timeout_s=monitor.patience_s)
            validation = ValidationConfig(fn=monitor, task_config=given_up, ray_remote_kwargs=place)
        return TorchTrainer(
            train_worker,
            train_loop_config={"task": self._task(monitor, monitor_cores)},
            torch_config=TorchConfig(timeout_s=_COLLECTIVE_S),
            scaling_config=ScalingConfig(
                num_workers=settings.num_workers,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=_RESIZE_S,
            ),
            run_config=RunConfig(
                name=self.run.name,
                **storage.for_ray(storage.join(settings.storage, "runs")),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=settings.keep_checkpoints,
                    checkpoint_score_attribute=SCORE if self.schedule.quality else None,
                ),
                callbacks=[
                    ForwardReports(self.events, self.run.folder),
                    MLflowCallback(self.log.spool, step="images", leave_out={SCORE}),
                ],
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
            validation_config=validation,
        )

    def _task(self, monitor: Monitor | None, monitor_cores: float) -> WorkerTask:
        return WorkerTask(
            settings=self.settings,
            schedule=self.schedule,
            photos=self.photos,
            held_out=self.held_out,
            fingerprint=self.data.manifest.fingerprint,
            labels=tuple(self.data.manifest.classes) if self.settings.conditional else (),
            learned_from=self.data.manifest.labels("train", self.settings.label),
            events=self.events,
            folder=self.run.folder,
            begin_from=self.trial.begin_from if self.trial else None,
            weights=storage.join(self.run.folder, BEGUN_FROM) if self.settings.begin_from else None,
            monitor=monitor and in_first_worker(monitor, self.settings.most_workers),
            monitor_cores=monitor_cores,
        )

    def _monitor(self) -> tuple[Monitor, float]:
        """The monitor, and the cores for it beside the workers."""
        settings = self.settings
        if self.trial:
            reference, cores = self.trial.shared.reference, self.trial.shared.monitor_cores
        else:
            reference, cores = start_measuring(settings, self.photos, self.held_out)
        monitor = Monitor(
            reference=reference,
            photos=self.photos,
            network=settings.quality_network,
            samples=settings.quality_samples,
            label=settings.label,
            events=self.events,
            folder=self.run.folder,
            patience_s=monitor_patience_s(settings, len(self.photos), len(self.held_out)),
        )
        return monitor, cores

    def _collapsed(self, collapse: Collapse, result: ray.train.Result) -> None:
        """Record the collapse and raise CollapsedError."""
        self.log.log_tags({"collapsed": f"at {collapse.kimg:.3g} kimg: {collapse.reason}"})
        self.run.save(state="collapsed")
        kept = "no checkpoint is kept"
        if result.checkpoint:
            kept = f"the last good checkpoint is {address_of(self.run.folder, result.checkpoint)}"
        raise CollapsedError(
            f"run {self.run.name} has collapsed at {collapse.kimg:.3g} kimg: {collapse.reason}; {kept}; "
            f"try lower --generator-lr and --critic-lr, or --augment color translation, under another --name"
        )


def check_snapshot(run: RunRecord) -> None:
    """Raise RayganError if Ray Train's list of checkpoints is damaged.

    Ray overwrites it in place: a full disk or a loss of power may leave half of it.
    """
    try:
        storage.read_json(storage.join(run.folder, _SNAPSHOT))
    except RayganError as error:
        raise RayganError(
            f"run {run.name} can't be resumed: {error}; a new run goes on from its last checkpoint with --begin-from "
            f"{run.name} and another --name"
        ) from None


def outlive_controllers(
    fit: Callable[[], ray.train.Result], restarts: int, stopped: threading.Event
) -> ray.train.Result:
    """Run Ray Train, again if its controller dies. (Failed workers are restarted by the controller.)

    Args:
        fit: runs Ray Train until the training ends; goes on from the last checkpoint.
        restarts: how often it may run again.
        stopped: set once nobody waits for the training any more: Ctrl-C kills the controller, and it stays dead.
    """
    while True:
        try:
            return fit()
        except ray.exceptions.RayActorError:
            if stopped.is_set() or not restarts:
                raise
            restarts -= 1
            tqdm.write("the training's controller has died; resuming from the last checkpoint", file=sys.stderr)


def monitor_patience_s(settings: TrainSettings, photos: int, held_out: int) -> float:
    """Seconds after which a measurement is given up: enough for the first one, which waits for the reference.

    Args:
        settings: of the training.
        photos: training photos.
        held_out: validation photos.
    """
    reference = min(train_photos(settings.minutes), photos) + min(VALIDATION_PHOTOS, held_out)
    return patience_s(settings.quality_samples + reference)


def in_first_worker(monitor: Monitor, workers: int) -> Monitor:
    """The monitor, less patient where other workers wait for the first one: they take it for dead after a while."""
    return replace(monitor, patience_s=min(monitor.patience_s, 0.8 * _COLLECTIVE_S)) if workers > 1 else monitor


def _best(result: ray.train.Result) -> tuple[ray.train.Checkpoint, int]:
    """The checkpoint of the lowest KID, or the last one where KID was not measured, and the images it has seen."""
    kept = result.best_checkpoints or []
    scored = [(checkpoint, metrics) for checkpoint, metrics in kept if SCORE in metrics]
    if scored:
        checkpoint, metrics = max(scored, key=lambda pair: float(pair[1][SCORE]))
    else:
        checkpoint, metrics = next(pair for pair in kept if pair[0].path == result.checkpoint.path)
    return checkpoint, int(metrics["images"])
