"""Train: shards in, a registered EMA generator out.

The mental model:

1. `train` runs in the driver. It checks everything that can be checked before work starts, reads the
   shards into the object store, opens the MLflow run and starts a `TorchTrainer`.
2. `raygan.worker.train_worker` runs in every worker and does the training.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from tqdm import tqdm

from raygan import cluster, storage, tracking
from raygan.batches import Photos, load_photos
from raygan.config import StorageSettings, TrainSettings, WorkerOptions
from raygan.errors import ConfigurationError, RayganError
from raygan.shards import DataSet
from raygan.worker import ForwardReports, Picture, Report, Tick, WorkerTask, numbers, train_worker

#: Settings that may change between a run and its resumption without making it another run.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("epochs", "data", "name", "snapshot_every", "checkpoint_every", "keep_checkpoints", "promote", "allow_changes"),
}


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
        params={**_recorded(settings), "fingerprint": data.manifest.fingerprint, "photos": len(photos)},
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
        now = {"settings": _recorded(settings), "fingerprint": data.manifest.fingerprint}
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


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """The settings as they may be shown to everyone: an address may carry a password."""
    return settings.model_dump(mode="json", exclude={"tracking_uri"})


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
    return result.checkpoint, follower.metrics or numbers(result.metrics)


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
                self._log.log_metrics(event.metrics, step=round(event.metrics["kimg"] * 1000))
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


def _export(checkpoint: Path, folder: Path) -> None:
    """Copy the generator's files, which are all that the service needs, out of a training checkpoint."""
    folder.mkdir()
    for name in ("generator.json", "generator.safetensors"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
