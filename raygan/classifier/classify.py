"""Classify: shards, generators or both in, a registered GoogLeNet out.

1. `classify` runs in the driver. It checks everything it can before any work, gathers training images (real, generated
   or mixed) and validation photos (always real, never trained on) in the object store, opens the MLflow run and starts
   a `TorchTrainer`. Half of the validation photos choose the best epoch (see `raygan.classifier.validation`).
2. `raygan.classifier.worker.classify_worker` runs on every rank: after each epoch it validates and reports a
   checkpoint. In long epochs it also reports checkpoints that only serve to resume.
3. Ray Train keeps the checkpoint with the lowest validation loss. The driver logs its metrics on the other half and
   registers it as `raygan-classifier`.

A run lives in ``<storage>/runs/<name>``; the same command resumes it.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from raygan import tracking
from raygan.classifier import promotion
from raygan.classifier.imagenet import load_imagenet_weights
from raygan.classifier.mixture import check_data, choose_generators, training_images
from raygan.classifier.report import log_validation
from raygan.classifier.settings import ClassifySettings
from raygan.classifier.validation import split_validation
from raygan.classifier.worker import ClassifyTask, checkpoint_bytes, classify_worker
from raygan.data.photos import Photos
from raygan.data.reader import load_photos, shards_mixed
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.models.googlenet import load_classifier
from raygan.runtime import capacity, cluster, reservations, storage
from raygan.runtime.progress import ImageProgress, InBackground
from raygan.runtime.room import warn_of_room
from raygan.runtime.runs import RunRecord, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.tracking.callback import MLflowCallback
from raygan.tracking.promotion import Decision, carry_out

#: Settings that may differ when a run is resumed.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("data", "name", "promote", "allow_changes", "checkpoint_minutes"),
}


@dataclass(frozen=True)
class ClassifyResult:
    """What a finished classification left behind.

    Attributes:
        run_id: of the MLflow run.
        model: the registered classifier.
        promotion: whether it became the champion, and why.
        metrics: of the registered classifier on validation photos that did not choose it, if there are enough.
    """

    run_id: str
    model: tracking.RegisteredModel
    promotion: Decision
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The job's last line."""
        model = {"name": self.model.name, "version": int(self.model.version)}
        promoted = self.promotion.plain()
        return json.dumps({"run_id": self.run_id, "model": model, "promotion": promoted, "metrics": self.metrics})


def classify(settings: ClassifySettings) -> ClassifyResult:
    """Train, validate and register a classifier, resuming an interrupted run of the same name.

    Raises:
        ConfigurationError: the settings don't fit the shards or the cluster.
        RayganError: anything else failed; the message says what to do.
    """
    data = DataSet.open(settings.data)
    check_data(data)
    shards_mixed(data, settings.data_memory)
    tracking.check_records(settings)
    weights = _initial_weights(settings)
    cluster.connect(settings)
    resources = capacity.place(settings)
    checkpoint = checkpoint_bytes(len(data.manifest.classes))
    cluster.check_scratch(checkpoint)
    warn_of_room("--storage", settings.storage, 3 * checkpoint, "the best checkpoint, the last and the next")
    generators = choose_generators(settings, data)
    run = RunRecord.open(
        # With the generators pinned: a new champion must not change a run that began with another.
        settings.model_copy(update={"model": [one.name for one in generators]}),
        settings.name or time.strftime("classify-%Y%m%d-%H%M%S"),
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        allow_changes=settings.allow_changes,
    )
    images, origin = training_images(settings, data, generators)
    choosing, measuring = split_validation(load_photos(data, "validation", None))
    origin["held_back_photos"] = len(measuring) if measuring is not choosing else 0
    task = ClassifyTask(
        settings=settings,
        labels=tuple(data.manifest.classes),
        image_size=data.manifest.image_size,
        images=images,
        validation=choosing,
        weights=weights,
        events=cluster.queue(),
    )
    params = {**recorded(settings), **origin, "fingerprint": data.manifest.fingerprint}
    with tracking.start_run(settings, run.name, job="classify", params=params, run_id=run.mlflow_run_id) as log:
        run.save(mlflow_run_id=log.id, state="running")
        log.log_data(storage.public(data.address), data.manifest.fingerprint, data.profile)
        print(f"run {run.name} in {run.folder}; --name {run.name} resumes it", flush=True)
        checkpoint, seen = _train(task, run, resources, log)
        result = _register(checkpoint, seen, task, measuring, origin, log)
        run.save(state="finished")
    return result


def _initial_weights(settings: ClassifySettings) -> dict[str, Tensor] | None:
    if settings.weights is None:
        return None
    path = None if settings.weights == "imagenet" else settings.weights
    return load_imagenet_weights(path, auxiliary=settings.auxiliary_weight > 0)


def _train(
    task: ClassifyTask, run: RunRecord, resources: dict[str, float], log: tracking.Run
) -> tuple[ray.train.Checkpoint, int]:
    """Run the trainer with a progress bar; the best checkpoint, and the training images it has seen."""
    settings = task.settings
    cluster.poll_training_often()
    trainer = TorchTrainer(
        classify_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=run.name,
            **storage.for_ray(storage.join(settings.storage, "runs")),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_nll", checkpoint_score_order="min"
            ),
            callbacks=[MLflowCallback(log.spool, step="images")],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    total = task.epoch * settings.epochs
    with reservations.returned_cores(), ImageProgress(total, "training") as progress:
        result = progress.follow(task.events, InBackground(trainer.fit, "training", run.folder))
    validated = [pair for pair in result.best_checkpoints or () if "images" in pair[1]]  # at the end of an epoch
    if not validated:
        raise RayganError(f"run {run.name} ended without a checkpoint")
    best, metrics = min(validated, key=lambda pair: float(pair[1]["validation_nll"]))
    return best, int(metrics["images"])


def _register(
    checkpoint: ray.train.Checkpoint,
    images: int,
    task: ClassifyTask,
    measuring: Photos,
    origin: dict[str, Any],
    log: tracking.Run,
) -> ClassifyResult:
    """Register the checkpoint's classifier."""
    with storage.files_of(checkpoint) as folder, tempfile.TemporaryDirectory() as scratch:
        classifier = load_classifier(folder)
        metrics = log_validation(classifier, measuring, log, images)
        exported = Path(scratch, "classifier")
        _export(folder, exported, origin | {f"validation_{name}": value for name, value in metrics.items()})
        model = tracking.register_classifier(log, exported, task.labels, metrics=metrics | {"images": images})
    decision = promotion.decide(task.settings, classifier, measuring, log)
    return ClassifyResult(log.id, model, carry_out(log.client, model, decision), metrics)


def _export(checkpoint: Path, folder: Path, about: dict[str, Any]) -> None:
    """Copy the classifier's files out of a checkpoint, adding `about` to their description."""
    folder.mkdir()
    (folder / "classifier.safetensors").write_bytes((checkpoint / "classifier.safetensors").read_bytes())
    description = json.loads((checkpoint / "classifier.json").read_text(encoding="utf-8"))
    description["about"] |= about
    (folder / "classifier.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
