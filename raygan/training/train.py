"""Train: shards in, a registered EMA generator out.

The mental model:

1. `train` runs in the driver. It checks everything that can be checked before work starts, reads the
   shards into the object store, opens the MLflow run and starts a `TorchTrainer`.
2. `raygan.training.worker.train_worker` runs in every worker and does the training.
3. Workers and Ray's controller send what happens (`Tick`, `Picture`, `Report`) through one queue to the
   driver, which shows progress and writes to MLflow. So MLflow is spoken to from one process only, and a
   worker never waits for it.

A run lives in ``<storage>/runs/<name>``: ``run.json`` (see `raygan.runtime.runs`), Ray Train's checkpoints,
``metrics.jsonl`` and ``pictures/``.
"""

from __future__ import annotations

import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
import torch
from PIL import Image
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, ValidationConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from tqdm import tqdm

from raygan import pictures, tracking
from raygan.data.batches import Photos, load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.models.gan import Generator, load_generator
from raygan.models.latents import images_of, latents_of, slerp
from raygan.runtime import cluster, reservations, storage
from raygan.runtime.progress import InBackground
from raygan.runtime.runs import RunRecord, address_of, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.tracking.callback import MLflowCallback, numbers
from raygan.training import monitor, plots
from raygan.training.events import SCORE, Collapse, Notice, Picture, Quality, Report, Tick
from raygan.training.history import History
from raygan.training.schedule import Schedule
from raygan.training.settings import LengthOptions, TrainSettings
from raygan.training.worker import ForwardReports, WorkerTask, train_worker

#: Seconds between two looks whether an elastic training could have more workers.
_RESIZE_S = 30.0

#: Settings that may change between a run and its resumption without making it another run.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *LengthOptions.model_fields,
    *("data", "name", "promote", "allow_changes"),
} - {"quality_network"}


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left behind."""

    run_id: str
    model: tracking.RegisteredModel | None
    checkpoint: str
    pictures: str
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The job's last line."""
        model = {"name": self.model.name, "version": int(self.model.version)} if self.model else None
        return json.dumps(
            {"run_id": self.run_id, "model": model, "checkpoint": self.checkpoint, "metrics": self.metrics}
        )


@dataclass(frozen=True)
class Shared:
    """What the trainings of one search have in common: photos, the future `Reference`, and a judge's cores."""

    photos: Photos
    reference: ray.ObjectRef
    judge_cores: float


@dataclass(frozen=True)
class TrialTraining:
    """A training as a trial of a search: it shares, tells the search of its quality, and registers nothing.

    parent_run: the search's MLflow run. begin_from: a checkpoint of another trial to go on from.
    """

    shared: Shared
    parent_run: str
    told: Callable[[Quality], None]
    begin_from: ray.train.Checkpoint | None = None


class CollapsedError(RayganError):
    """The training died of itself; going on or trying again brings nothing."""


def train(settings: TrainSettings, trial: TrialTraining | None = None) -> TrainResult:
    """Train to the length asked for, resuming an interrupted run of the same name.

    Raises ConfigurationError for settings that the shards or the cluster can't serve, CollapsedError for a training
    that collapsed, RayganError for anything else that went wrong, each with the way out.
    """
    data = check(settings)
    tracking.connect(settings)
    cluster.connect(settings)
    settings = monitor.with_network(settings)
    resources = cluster.worker_resources(settings)
    cluster.require(settings.fewest_workers, resources)
    schedule = Schedule.of(settings, data.manifest.count("train", settings.label), settings.batch_size)
    run = RunRecord.open(
        settings,
        settings.name or time.strftime(f"{settings.objective}-{settings.label or 'all'}-%Y%m%d-%H%M%S"),
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        allow_changes=settings.allow_changes,
        images=schedule.total * settings.batch_size,
        minutes=settings.minutes,
    )
    photos = trial.shared.photos if trial else load_photos(data, "train", settings.label)
    label = settings.label or "all"
    tags = {"raygan.label": label, **({"mlflow.parentRunId": trial.parent_run} if trial else {})}
    with tracking.start_run(
        settings,
        run.name,
        job="train",
        params={**recorded(settings), "fingerprint": data.manifest.fingerprint, "photos": len(photos)},
        tags=tags,
        run_id=run.mlflow_run_id,
    ) as log:
        run.save(mlflow_run_id=log.id, state="running")
        if not trial:
            print(f"run {run.name} in {run.folder}; --name {run.name} resumes it", flush=True)
        training = Training(settings, schedule, run, data, photos, log, trial)
        # A trial's reservation is given back by its search, which may kill the trial.
        with reservations.addressed() if trial else reservations.returned_cores():
            outcome = training.fit(resources)
        with tempfile.TemporaryDirectory() as scratch:
            generator = Path(scratch, "generator")
            with outcome.chosen.as_directory() as folder:
                _export(Path(folder), generator)
            training.draw_end(generator)
            training.log_checkpoint(outcome)
            labels = data.manifest.classes if settings.conditional else [label]
            model = None
            if not trial:
                model = tracking.register_generator(log, generator, label, labels=labels, promote=settings.promote)
        run.save(state="finished", images=outcome.images, minutes=outcome.metrics.get("minutes", 0.0))
    checkpoint = address_of(run.folder, outcome.chosen)
    return TrainResult(log.id, model, checkpoint, storage.join(run.folder, "pictures"), outcome.metrics)


def check(settings: TrainSettings) -> DataSet:
    """The shards, if the settings can be trained on them. Raises ConfigurationError that says what can't be."""
    data = DataSet.open(settings.data)
    data.check(image_size=settings.image_size, label=settings.label)
    _check_enough(data, settings)
    return data


def _check_enough(data: DataSet, settings: TrainSettings) -> None:
    count = data.manifest.count("train", settings.label)
    if count < settings.batch_size:
        kind = f"training photos of {settings.label}" if settings.label else "training photos"
        raise ConfigurationError(
            f"--batch-size: {settings.data} has only {count} {kind}, "
            f"fewer than one batch of {settings.batch_size}: add photos, or lower --batch-size to at most {count}"
        )
    held_back = data.manifest.count("validation", settings.label)
    if settings.quality_every != 0 and not monitor.can_judge(held_back):
        raise ConfigurationError(
            f"--quality-every: {settings.data} has only {held_back} validation photos, too few to measure quality on: "
            f"prepare more photos or a larger --validation share, or train without it by --quality-every 0"
        )
    if settings.conditional and len(data.manifest.classes) < 2:
        raise ConfigurationError(
            f"--conditional: {settings.data} has the one label {data.manifest.classes[0]}: leave --conditional out"
        )


@dataclass(frozen=True)
class Outcome:
    """What Ray Train returned: `chosen` is the best checkpoint by KID, or the last where there is no KID."""

    chosen: ray.train.Checkpoint
    last: ray.train.Checkpoint
    metrics: dict[str, float]
    images: int


class Training:
    """One run's way through Ray Train, followed from the driver."""

    def __init__(
        self,
        settings: TrainSettings,
        schedule: Schedule,
        run: RunRecord,
        data: DataSet,
        photos: Photos,
        log: tracking.Run,
        trial: TrialTraining | None,
    ):
        self.settings, self.schedule, self.run, self.log, self.trial = settings, schedule, run, log, trial
        self.data, self.photos = data, photos
        self.events = cluster.queue()
        self.history = History(storage.join(run.folder, "metrics.jsonl"))

    def fit(self, resources: dict[str, float]) -> Outcome:
        """Train, following the events. Raises RayganError if the training failed or collapsed."""
        judge, cores = self._judge() if self.schedule.quality else (None, 0.0)
        cluster.poll_training_often()
        training = InBackground(lambda: self._fit(resources, judge, cores), "training")
        with _Follower(self) as follower:
            while not training.finished():
                follower.follow(self.events, wait_s=0.5)
            follower.follow(self.events, wait_s=0.1)
            result = training.result()
            follower.catch_up(result)
        if follower.collapse:
            self._say_collapse(follower.collapse, result)
        if result.checkpoint is None:
            raise RayganError(f"run {self.run.name} ended without a checkpoint")
        return Outcome(_best(result), result.checkpoint, self.history.latest, follower.images)

    def _fit(self, resources: dict[str, float], judge: monitor.Judge | None, judge_cores: float) -> ray.train.Result:
        """Ray Train to its end; it starts failed workers again itself, but nobody starts its controller again."""
        left = self.settings.max_failures
        while True:
            try:
                return self._trainer(resources, judge, judge_cores).fit()
            except ray.exceptions.RayActorError:
                if not left:
                    raise
                left -= 1
                tqdm.write("the training's controller has died; going on from the last checkpoint", file=sys.stderr)

    def _trainer(self, resources: dict[str, float], judge: monitor.Judge | None, judge_cores: float) -> TorchTrainer:
        settings = self.settings
        validation = None
        if judge and judge_cores:
            # A trial's placement group has no room for its judge; the cluster has.
            place = {"num_cpus": judge_cores, "scheduling_strategy": "DEFAULT"}
            validation = ValidationConfig(fn=judge, ray_remote_kwargs=place)
        task = WorkerTask(
            settings=settings,
            schedule=self.schedule,
            photos=self.photos,
            fingerprint=self.data.manifest.fingerprint,
            labels=tuple(self.data.manifest.classes) if settings.conditional else (),
            events=self.events,
            folder=self.run.folder,
            begin_from=self.trial.begin_from if self.trial else None,
            judge=None if validation else judge,
        )
        return TorchTrainer(
            train_worker,
            train_loop_config={"task": task},
            torch_config=TorchConfig(timeout_s=600),
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

    def _judge(self) -> tuple[monitor.Judge, float]:
        """What judges checkpoints, and the cores that there are for it beside the workers."""
        settings = self.settings
        if self.trial:
            reference, cores = self.trial.shared.reference, self.trial.shared.judge_cores
        else:
            reference, cores = monitor.start_measuring(settings, self.data, self.photos)
        judge = monitor.Judge(
            reference=reference,
            photos=self.photos,
            network=settings.quality_network,
            samples=settings.quality_samples,
            label=settings.label,
            threads=max(1, int(cores)),
            events=self.events,
            folder=self.run.folder,
        )
        return judge, cores

    def _say_collapse(self, collapse: Collapse, result: ray.train.Result) -> None:
        self.log.log_tags({"collapsed": f"at {collapse.kimg:.3g} kimg: {collapse.reason}"})
        self.run.save(state="collapsed")
        kept = "no checkpoint is kept"
        if result.checkpoint:
            kept = f"the last good checkpoint is {address_of(self.run.folder, result.checkpoint)}"
        raise CollapsedError(
            f"run {self.run.name} has collapsed at {collapse.kimg:.3g} kimg: {collapse.reason}; {kept}; "
            f"try lower --generator-lr and --critic-lr, or --augment color translation, under another --name"
        )

    def draw_end(self, generator: Path) -> None:
        """Draw curves, the samples' way as an animation, and a walk through the latents, into the run and MLflow."""
        folder = storage.join(self.run.folder, "pictures")
        drawn = {
            "curves.png": plots.curves(self.history.records),
            "progress.webp": pictures.animation(_frames(folder)),
            "interpolation.png": pictures.png(interpolation(load_generator(generator)[0])),
        }
        for name, content in drawn.items():
            if content:
                storage.write_bytes(storage.join(folder, name), content)
                self.log.log_bytes(content, f"pictures/{name}")

    def log_checkpoint(self, outcome: Outcome) -> None:
        """Copy the training checkpoint that the settings ask for to MLflow."""
        which = self.settings.log_checkpoints
        if which != "none":
            chosen = outcome.chosen if which == "best" else outcome.last
            with chosen.as_directory() as folder:
                self.log.log_folder(Path(folder), f"checkpoints/{which}")


def _best(result: ray.train.Result) -> ray.train.Checkpoint:
    """The checkpoint of the lowest KID, or the last one where none was judged."""
    judged = [(metrics[SCORE], checkpoint) for checkpoint, metrics in result.best_checkpoints or [] if SCORE in metrics]
    return max(judged, key=lambda pair: pair[0])[1] if judged else result.checkpoint


class _Follower:
    """Turns events into a progress bar on standard error, a history and MLflow's pictures."""

    def __init__(self, training: Training):
        self._training = training
        self.collapse: Collapse | None = None
        self.images = 0
        self._batch = training.settings.batch_size
        self._most = training.schedule.total * self._batch
        by_clock = training.schedule.minutes < math.inf
        # A search has a bar of its own.
        self._bar = tqdm(
            total=None if by_clock else self._most,
            desc="training",
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            disable=bool(training.trial),
        )
        self._shown: dict[str, str] = {}
        self._started = self._said = False

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()  # first: what is said next begins on a line of its own
        self._training.history.save()

    def follow(self, events: Queue, wait_s: float) -> None:
        """Handle what has come, waiting up to `wait_s` seconds for the first event."""
        try:
            batch = [events.get(timeout=wait_s), *events.get_nowait_batch(events.qsize())]
        except Empty:
            return
        for event in batch:
            if isinstance(event, Tick):
                self._show(event.batches * self._batch)
            elif isinstance(event, Picture):
                self._pass_on(event)
            elif isinstance(event, Report):
                self._report(numbers(event.metrics))
            elif isinstance(event, Quality):
                self._judge(event)
            elif isinstance(event, Notice):
                tqdm.write(f"a node is about to be taken away: saving at {event.kimg:.3g} kimg", file=sys.stderr)
            elif isinstance(event, Collapse):
                self.collapse = event
        self._training.history.save(at_least_every_s=5)

    def catch_up(self, result: ray.train.Result) -> None:
        """Handle the measurements of kept checkpoints that an earlier driver died before it heard of."""
        for checkpoint, metrics in result.best_checkpoints or []:
            if "judged" in metrics:
                address = address_of(self._training.run.folder, checkpoint)
                event = Quality(images=int(metrics["images"]), checkpoint=address, **metrics["judged"])
                if not self._training.history.knows({**event.metrics, "images": event.images}):
                    self._judge(event)

    def _pass_on(self, picture: Picture) -> None:
        """Copy a picture to MLflow; a storage that doesn't answer is no reason to end a training."""
        try:
            if picture.trouble:
                raise RayganError(picture.trouble)
            content = storage.read_bytes(storage.join(self._training.run.folder, picture.path))
        except (RayganError, FileNotFoundError) as error:
            if not self._said:
                tqdm.write(f"warning: MLflow gets no {picture.path}: {first_line(error)}", file=sys.stderr)
            self._said = True
            return
        self._training.log.log_bytes(content, picture.path)

    def _report(self, metrics: dict[str, float]) -> None:
        self._training.history.add(metrics)
        minutes_left = self._training.schedule.minutes - metrics["minutes"]
        if minutes_left < math.inf:
            coming = 60 * max(0.0, minutes_left) * metrics["images_per_second"]
            self._bar.total = min(self._most, int(metrics["images"] + coming))
        self._show(int(metrics["images"]))
        self._shown |= {name: f"{value:.3g}" for name, value in metrics.items() if name.endswith("loss")}

    def _judge(self, event: Quality) -> None:
        self._training.history.add({**event.metrics, "images": event.images})
        # Not through the callback: a judgement comes when the training is long past the images it is about.
        self._training.log.log_metrics(event.metrics, event.images)
        if self._training.trial:
            self._training.trial.told(event)
        self._shown |= {"kid": f"{next(iter(event.metrics.values())):.3g} at {event.images / 1000:.0f} kimg"}

    def _show(self, images: int) -> None:
        self.images = max(self.images, images)
        if not self._started:
            # What an earlier session trained must not count as this session's speed.
            self._bar.initial = self._bar.n = images
            self._bar.start_t = self._bar.last_print_t = time.time()
            self._started = True
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(max(0, images - self._bar.n))


def _frames(folder: str) -> list[Image.Image]:
    """The generated halves of a run's sample grids, in order."""
    grids = [
        Image.open(io.BytesIO(storage.read_bytes(path))) for path in storage.list_files(folder, "samples-*-images.png")
    ]
    return [grid.crop((grid.width // 2, 0, grid.width, grid.height)) for grid in grids]


def interpolation(generator: Generator, rows: int = 6, columns: int = 10) -> Image.Image:
    """Walks between two latents a row, each on the sphere on which a normal latent's length lies."""
    z_dim = generator.settings.z_dim
    starts, ends = (latents_of(range(first, first + rows), z_dim) for first in (0, rows))
    shares = torch.linspace(0, 1, columns).repeat(rows)
    latents = slerp(starts.repeat_interleave(columns, 0), ends.repeat_interleave(columns, 0), shares)
    classes = None
    if generator.labels:
        classes = (torch.arange(rows) % len(generator.labels)).repeat_interleave(columns)
    return pictures.grid(images_of(generator, latents, classes), columns)


def _export(checkpoint: Path, folder: Path) -> None:
    """Copy the generator's files, which are all that the service needs, out of a training checkpoint."""
    folder.mkdir()
    for name in ("generator.json", "generator.safetensors"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
