"""Train: shards in, a registered EMA generator out.

The mental model:

1. `train` runs in the driver. It checks everything that can be checked before work starts, reads the
   shards into the object store, opens the MLflow run and starts a `TorchTrainer`.
2. `train_worker` runs in every worker: a `GanStep` over its rows of each global batch, and at the end of an
   epoch metrics, pictures and a checkpoint.
3. Workers and Ray's controller send what happens (`Tick`, `Picture`, `Report`) through one queue to the
   driver, which shows progress and writes to MLflow. So MLflow is spoken to from one process only, and a
   worker never waits for it.

A run lives in ``<storage>/runs/<name>``: Ray Train's checkpoints, ``pictures/``, and ``run.json``, which ties
it to its MLflow run and to the settings and shards it began with.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch
from pydantic import BaseModel
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from tqdm import tqdm

from raygan import cluster, pictures, storage, tracking
from raygan.batches import BatchStream, Photos, load_photos
from raygan.config import StorageSettings, TrainSettings, WorkerOptions
from raygan.errors import ConfigurationError, RayganError
from raygan.gan.checkpoint import load_training, save_training
from raygan.gan.networks import NetworkSettings, draw_latents
from raygan.gan.objectives import Terms
from raygan.gan.step import GanStep, Share, StepSettings, seeded, to_uint8
from raygan.shards import DataSet

#: Images in each half of a sample grid, and in a row of it.
GRID_IMAGES, GRID_COLUMNS = 64, 8

#: Settings that may change between a run and its resumption without making it another run.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("epochs", "data", "name", "snapshot_every", "checkpoint_every", "keep_checkpoints", "promote", "allow_changes"),
}

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


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left behind."""

    run_id: str
    model: tracking.RegisteredModel
    checkpoint: str
    pictures: str
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The job's last line."""
        model = {"name": self.model.name, "version": int(self.model.version)}
        return json.dumps(
            {"run_id": self.run_id, "model": model, "checkpoint": self.checkpoint, "metrics": self.metrics}
        )


def train(settings: TrainSettings) -> TrainResult:
    """Train until `epochs` are done, resuming an interrupted run of the same name.

    Raises ConfigurationError for settings that the shards or the cluster can't serve, RayganError for
    anything else that went wrong, each with the way out.
    """
    data = DataSet.open(settings.data)
    data.check(image_size=settings.image_size, label=settings.label)
    _check_enough(data, settings)
    tracking.connect(settings)
    cluster.connect()
    resources = _worker_resources(settings)
    cluster.require(settings.num_workers, resources)
    run = RunRecord.open(settings, data)
    photos = load_photos(data, "train", settings.label)
    label = settings.label or "all"
    with tracking.start_run(
        settings,
        run.name,
        job="train",
        params={**settings.plain(), "fingerprint": data.manifest.fingerprint, "photos": len(photos)},
        tags={"raygan.label": label},
        run_id=run.mlflow_run_id,
    ) as log:
        run.save(mlflow_run_id=log.id, state="running")
        print(f"run {run.name} in {run.folder}; --name {run.name} resumes it", flush=True)
        checkpoint, metrics = _fit(settings, run, photos, resources, log)
        with tempfile.TemporaryDirectory() as scratch, checkpoint.as_directory() as folder:
            generator = Path(scratch, "generator")
            _export(Path(folder), generator)
            model = tracking.register_generator(log, generator, label, promote=settings.promote)
        run.save(state="finished")
    return TrainResult(log.id, model, checkpoint.path, storage.join(run.folder, "pictures"), metrics)


class RunRecord:
    """A run's place in storage and its ``run.json``."""

    def __init__(self, name: str, folder: str, values: dict[str, Any]):
        self.name, self.folder, self._values = name, folder, values

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run that this run was logged to before, if it is resumed."""
        return self._values.get("mlflow_run_id")

    @classmethod
    def open(cls, settings: TrainSettings, data: DataSet) -> RunRecord:
        """The run of this name, old or new.

        Raises ConfigurationError if it is finished already, or was begun with other settings or shards.
        """
        name = settings.name or time.strftime(f"{settings.objective}-{settings.label or 'all'}-%Y%m%d-%H%M%S")
        if not re.fullmatch(r"[\w.-]{1,120}", name):
            raise ConfigurationError(f"--name: {name!r} may have letters, digits, '.', '_' and '-' only, at most 120")
        folder = storage.join(settings.storage, "runs", name)
        now = {"settings": settings.plain(), "fingerprint": data.manifest.fingerprint}
        before = storage.read_json(storage.join(folder, "run.json"))
        if before is None:
            return cls(name, folder, now)
        if before.get("state") == "finished" and before["settings"]["epochs"] >= settings.epochs:
            raise ConfigurationError(
                f"--name: run {name} has finished its {before['settings']['epochs']} epochs: "
                f"raise --epochs to train it further, or give another --name"
            )
        differences = _differences(before, now)
        if differences and not settings.allow_changes:
            raise ConfigurationError(
                f"--name: run {name} was begun differently ({'; '.join(differences)}): "
                f"give another --name, or resume it all the same with --allow-changes"
            )
        print(f"resuming run {name}")
        return cls(name, folder, {**before, **now})

    def save(self, **changes: str) -> None:
        """Record changes of state."""
        self._values |= changes
        storage.write_json(storage.join(self.folder, "run.json"), self._values)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before.get("settings", {}), now["settings"]
    changed = [
        f"{key} was {old.get(key)}, now {value}"
        for key, value in new.items()
        if key not in MAY_CHANGE and old.get(key) != value
    ]
    if before.get("fingerprint") != now["fingerprint"]:
        changed.append("the shards have changed since")
    return changed


def _check_enough(data: DataSet, settings: TrainSettings) -> None:
    count = data.manifest.count("train", settings.label)
    if count < settings.batch_size:
        kind = f"training photos of {settings.label}" if settings.label else "training photos"
        raise ConfigurationError(
            f"--batch-size: {settings.data} has only {count} {kind}, "
            f"fewer than one batch of {settings.batch_size}: add photos, or lower --batch-size to at most {count}"
        )


def _worker_resources(settings: TrainSettings) -> dict[str, float]:
    resources: dict[str, float] = {"CPU": settings.cpus_per_worker}
    if cluster.use_gpus(settings.gpu, settings.num_workers):
        resources["GPU"] = 1
    return resources


# ---------------------------------------------------------------------------------------------- driver


def _fit(
    settings: TrainSettings, run: RunRecord, photos: Photos, resources: dict[str, float], log: tracking.Run
) -> tuple[ray.train.Checkpoint, dict[str, float]]:
    """Run the trainer, following its events; the last checkpoint and metrics."""
    events = Queue(actor_options={"num_cpus": 0})
    task = WorkerTask(settings=settings, photos=photos, events=events, folder=run.folder)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage.join(settings.storage, "runs"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            callbacks=[ForwardReports(events)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    cluster.poll_training_often()
    training = _InBackground(trainer.fit)
    follower = _Follower(settings, len(photos) // settings.batch_size, log, run.folder)
    with follower:
        while not training.finished():
            follower.follow(events, wait_s=0.5)
        follower.follow(events, wait_s=0.1)
    result = training.result()
    if result.checkpoint is None:
        raise RayganError(f"run {run.name} ended without a checkpoint")
    return result.checkpoint, follower.metrics or _numbers(result.metrics)


class _InBackground:
    """A call in a thread of its own, so that the main thread stays free for signals and progress."""

    def __init__(self, call: Any):
        self._outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Any) -> None:
        try:
            self._outcome["result"] = call()
        except BaseException as error:
            self._outcome["error"] = error

    def finished(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        """The call's result. Raises RayganError with the innermost cause if it failed."""
        error = self._outcome.get("error")
        if error is not None:
            raise RayganError(f"training failed: {_cause(error)}") from error
        return self._outcome["result"]


def _cause(error: BaseException) -> str:
    """The line that says most: the last one of a remote traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _Follower:
    """Turns events into a progress bar on standard error and into MLflow records."""

    def __init__(self, settings: TrainSettings, batches_per_epoch: int, log: tracking.Run, folder: str):
        self.metrics: dict[str, float] = {}
        self._batches_per_epoch = batches_per_epoch
        self._settings, self._log, self._folder = settings, log, folder
        total = batches_per_epoch * settings.batch_size * settings.epochs
        self._bar = tqdm(total=total, desc="training", unit="img", unit_scale=True, smoothing=0.05)
        self._started = False

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def follow(self, events: Queue, wait_s: float) -> None:
        """Handle what has come, waiting up to `wait_s` seconds for the first event."""
        try:
            batch = [events.get(timeout=wait_s), *events.get_nowait_batch(events.qsize())]
        except Empty:
            return
        for event in batch:
            if isinstance(event, Tick):
                self._show(event.batches)
            elif isinstance(event, Picture):
                self._log.log_bytes(storage.read_bytes(storage.join(self._folder, event.path)), event.path)
            elif isinstance(event, Report):
                self.metrics = event.metrics
                self._log.log_metrics(event.metrics, step=int(event.metrics["kimg"] * 1000))
                losses = {name: f"{value:.3g}" for name, value in event.metrics.items() if name.endswith("loss")}
                self._bar.set_postfix(losses)

    def _show(self, batches: int) -> None:
        images = batches * self._settings.batch_size
        if not self._started:
            # What an earlier session trained must not count as this session's speed.
            self._bar.initial = self._bar.n = images
            self._bar.start_t = self._bar.last_print_t = time.time()
            self._started = True
        self._bar.set_description(f"epoch {batches // self._batches_per_epoch}/{self._settings.epochs}", refresh=False)
        self._bar.update(images - self._bar.n)


class ForwardReports(ray.train.UserCallback):
    """Passes every report, once its checkpoint is safe, from Ray Train's controller to a queue."""

    def __init__(self, events: Queue):
        self._events = events

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._events.actor.put_nowait.remote(Report(_numbers(metrics[0])))


def _numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def _export(checkpoint: Path, folder: Path) -> None:
    """Copy the generator's files, which are all that the service needs, out of a training checkpoint."""
    folder.mkdir()
    for name in ("generator.json", "generator.safetensors"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())


# ---------------------------------------------------------------------------------------------- worker


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
