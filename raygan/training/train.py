"""Train: shards in, a registered EMA generator out.

1. `train` runs in the driver. It checks whatever can be checked before work starts, opens the run and its MLflow
   record, lets `raygan.training.trainer` train, and publishes the best generator.
2. `raygan.training.worker` runs in each worker and does the training.
3. Workers, Ray Train's controller and the monitor send `raygan.training.events` through one queue to the driver, where
   `raygan.training.progress` shows and records them. So only one process speaks to MLflow, and workers never wait.
4. Ctrl-C and SIGTERM raise in `raygan.runtime.progress.follow`. `raygan.runtime.reservations` kills Ray Train's
   controller, `raygan.tracking.start_run` closes the MLflow run as KILLED, and `raygan.cli` says how to resume.

A run lives in ``<storage>/runs/<name>``: ``run.json`` (see `raygan.runtime.runs`), Ray Train's checkpoints,
``metrics.jsonl`` and ``pictures/``.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from raygan import tracking
from raygan.addresses import slug
from raygan.data.photos import open_photos
from raygan.data.reader import load_photos, shards_mixed
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings, load_generator
from raygan.runtime import capacity, cluster, reservations, storage
from raygan.runtime.room import warn_of_room
from raygan.runtime.runs import RunRecord, address_of, begun_with, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.tracking.promotion import Decision, carry_out
from raygan.training import monitor, plots, promotion
from raygan.training.build import network_settings
from raygan.training.checkpoints import checkpoint_bytes
from raygan.training.registry import OBJECTIVES
from raygan.training.schedule import Schedule
from raygan.training.settings import LengthOptions, TrainSettings
from raygan.training.source import keep_source
from raygan.training.trainer import Outcome, Training, TrialTraining

#: Settings that a resumed run may change without becoming another run.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *LengthOptions.model_fields,
    *("data", "name", "promote", "allow_changes"),
} - {"quality_network"}


@dataclass(frozen=True)
class Published:
    """What came of a result: the registered model, its metrics measured afresh, and whether it was promoted."""

    model: tracking.RegisteredModel | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    decision: Decision | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left behind.

    Attributes:
        run_id: of the MLflow run.
        model: the registered generator; None for a search's trial.
        promotion: whether it became the champion, and why; None for a search's trial.
        checkpoint: address of the chosen checkpoint.
        pictures: address of the folder of pictures.
        metrics: of the chosen checkpoint, which became the model; those that begin with ``fresh_`` did not choose it.
        last_metrics: the latest value of each metric.
    """

    run_id: str
    model: tracking.RegisteredModel | None
    promotion: Decision | None
    checkpoint: str
    pictures: str
    metrics: dict[str, float]
    last_metrics: dict[str, float]

    def to_json(self) -> str:
        """The job's last line."""
        model = {"name": self.model.name, "version": int(self.model.version)} if self.model else None
        return json.dumps(
            {
                "run_id": self.run_id,
                "model": model,
                "promotion": self.promotion.plain() if self.promotion else None,
                "checkpoint": self.checkpoint,
                "metrics": self.metrics,
                "last_metrics": self.last_metrics,
            }
        )


def train(settings: TrainSettings, trial: TrialTraining | None = None) -> TrainResult:
    """Train to the given length, resuming an interrupted run of the same name.

    Args:
        settings: of the training.
        trial: what it shares with a search, if it is a trial of one.

    Raises:
        ConfigurationError: the shards or the cluster don't fit the settings.
        CollapsedError: the training collapsed.
        RayganError: anything else went wrong. Each error says what to do.
    """
    data = check(settings)
    tracking.check_records(settings)
    cluster.connect(settings)
    settings = monitor.with_network(settings, begun_with(settings, settings.name))
    resources = capacity.place(settings, quiet=trial is not None)
    schedule = Schedule.of(settings, data.manifest.count("train", settings.label), settings.batch_size)
    run = _open_run(settings, schedule, data)
    networks = network_settings(settings, tuple(data.manifest.classes) if settings.conditional else ())
    begins = keep_source(settings, networks, run)
    if not trial:
        check_room(settings, networks)
    photos = trial.shared.photos if trial else load_photos(data, "train", settings.label, settings.data_memory)
    held_out = trial.shared.held_out if trial else open_photos(data, "validation", settings.label)
    parent = {"mlflow.parentRunId": trial.parent_run} if trial else {}
    with tracking.start_run(
        settings,
        run.name,
        job="train",
        params={**recorded(settings), "fingerprint": data.manifest.fingerprint, "photos": len(photos)},
        tags={"raygan.label": settings.label or "all", **parent},
        run_id=run.mlflow_run_id,
    ) as log:
        run.save(mlflow_run_id=log.id, state="running")
        log.log_data(storage.public(data.address), data.manifest.fingerprint, data.profile)
        if not trial:
            print(f"run {run.name} in {run.folder}; --name {run.name} resumes it", flush=True)
            if begins:
                print(begins, flush=True)
        training = Training(settings, schedule, run, data, photos, held_out, log, trial)
        # A trial's cores are returned by its search, which may kill the trial.
        with reservations.addressed() if trial else reservations.returned_cores():
            outcome = training.fit(resources)
        published = _publish(training, outcome)
        run.save(state="finished", images=outcome.images, minutes=outcome.last_metrics.get("minutes", 0.0))
    checkpoint = address_of(run.folder, outcome.chosen)
    folder = storage.join(run.folder, "pictures")
    metrics = outcome.chosen_metrics | published.metrics
    return TrainResult(log.id, published.model, published.decision, checkpoint, folder, metrics, outcome.last_metrics)


def check(settings: TrainSettings) -> DataSet:
    """The shards. Raises ConfigurationError if the training can't be run on them."""
    data = DataSet.open(settings.data)
    data.check(image_size=settings.image_size, label=settings.label)
    count = data.manifest.count("train", settings.label)
    if count < settings.batch_size:
        kind = f"training photos of {settings.label}" if settings.label else "training photos"
        raise ConfigurationError(
            f"--batch-size: {settings.data} has only {count} {kind}, "
            f"fewer than one batch of {settings.batch_size}: add photos, or lower --batch-size to at most {count}"
        )
    shards_mixed(data, settings.data_memory)
    held_out = data.manifest.count("validation", settings.label)
    if settings.quality_every != 0 and not monitor.can_measure(held_out):
        raise ConfigurationError(
            f"--quality-every: {settings.data} has only {held_out} validation photos, too few to measure quality on: "
            f"prepare more photos or a larger --validation share, or train without it by --quality-every 0"
        )
    if settings.conditional and len(data.manifest.classes) < 2:
        raise ConfigurationError(
            f"--conditional: {settings.data} has only the label {data.manifest.classes[0]}: leave --conditional out"
        )
    if settings.conditional:
        tracking.check_labels(data.manifest.classes)
    return data


def _open_run(settings: TrainSettings, schedule: Schedule, data: DataSet) -> RunRecord:
    return RunRecord.open(
        settings,
        settings.name
        or time.strftime(f"{settings.objective}-{slug(settings.label or 'all', 60, ascii_only=True)}-%Y%m%d-%H%M%S"),
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        allow_changes=settings.allow_changes,
        images=schedule.total,
        minutes=settings.minutes,
    )


def check_room(settings: TrainSettings, networks: NetworkSettings, runs: int = 1) -> None:
    """Warn if the storage has no room for the checkpoints: those that are kept, and one before another is deleted.

    Args:
        settings: of a training.
        networks: what a checkpoint holds.
        runs: trainings whose checkpoints are there at a time.

    Raises:
        RayganError: not even one has room where workers write it first.
    """
    checkpoint, count = checkpoint_bytes(networks), runs * (settings.keep_checkpoints + 1)
    cluster.check_scratch(checkpoint)
    what = f"{count} checkpoints of {storage.size(checkpoint)}"
    warn_of_room("--storage", settings.storage, count * checkpoint, what)


def _publish(training: Training, outcome: Outcome) -> Published:
    """Draw the run's last pictures, copy to MLflow what it keeps, and register the generator unless it is a trial's."""
    settings, log = training.settings, training.log
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "generator")
        with storage.files_of(outcome.chosen) as checkpoint:
            _export(checkpoint, folder)
        _draw(training, folder)
        if settings.log_checkpoints != "none":
            logged = outcome.chosen if settings.log_checkpoints == "best" else outcome.last
            with storage.files_of(logged) as checkpoint:
                log.log_folder(checkpoint, f"checkpoints/{settings.log_checkpoints}")
        if training.trial:
            return Published()
        generator, _ = load_generator(folder)
        label = settings.label or "all"
        labels = training.data.manifest.classes if settings.conditional else [label]
        measured, decision = promotion.judge(
            settings,
            training.data,
            generator,
            tracking.generator_name(label),
            log,
            measure=bool(training.schedule.quality),
        )
        log.log_metrics(measured, int(outcome.chosen_metrics["images"]))
        metrics = outcome.chosen_metrics | measured
        model = tracking.register_generator(log, folder, label, labels=labels, metrics=metrics)
        return Published(model, measured, carry_out(log.client, model, decision))


def _export(checkpoint: Path, folder: Path) -> None:
    """Copy the generator's files, all that the service needs, out of a training checkpoint."""
    folder.mkdir()
    for name in ("generator.json", "generator.safetensors"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())


def _draw(training: Training, generator: Path) -> None:
    """Draw how the training went and what its generator can do, into the run's folder and MLflow."""
    folder = storage.join(training.run.folder, "pictures")
    panels = OBJECTIVES.load(training.settings.objective).panels
    drawn = {
        "curves.png": plots.curves(training.history.records, panels),
        "progress.webp": plots.progress(folder),
        "interpolation.png": plots.interpolation(load_generator(generator)[0]),
    }
    for name, content in drawn.items():
        if content:
            storage.write_bytes(storage.join(folder, name), content)
            training.log.log_bytes(content, f"pictures/{name}")
    if drawn["curves.png"]:
        training.log.log_image(drawn["curves.png"], "curves", int(training.history.latest["images"]))
