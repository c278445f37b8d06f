"""Classify: shards, generators or both in, a registered GoogLeNet out.

The mental model:

1. `classify` runs in the driver. It checks what can be checked, gathers the training images in the object store (real
   photos, generated images, or a mixture) and the validation photos, which are always real and never trained on,
   opens the MLflow run and starts a `TorchTrainer`.
2. `classify_worker` runs in every worker: lessons, and after each epoch an examination and a checkpoint.
3. Ray Train keeps the checkpoint of the lowest validation loss. The driver shows how that one judges the
   validation photos and registers it as `raygan-classifier`.

The record is kept as `jobs/train.py` keeps it: ``<storage>/runs/<name>``, resumed by the same command.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from raygan import charts, pictures, tracking
from raygan.classifier.loop import Lessons, fit_settings
from raygan.classifier.mixture import balanced_subset, combined, generated_photos, mixture_sizes
from raygan.classifier.settings import ClassifySettings
from raygan.classifier.step import ClassifierFit, imagenet_start
from raygan.data.batches import Photos, load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.metrics.classification import confusion, score
from raygan.models.googlenet import Classifier, load_classifier, save_classifier
from raygan.models.weights import load_description, load_tensors, save_description, save_tensors
from raygan.runtime import cluster, reservations, storage
from raygan.runtime.progress import ImageProgress, InBackground, Seen
from raygan.runtime.runs import RunRecord, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.sampling.generators import NamedGenerator, matching_generators
from raygan.tracking.callback import MLflowCallback
from raygan.training.worker import place_of

#: Settings that may change between a run and its resumption without making it another run.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("data", "name", "promote", "allow_changes"),
}

#: Wrongly judged photos on the contact sheet.
SHOWN = 48

_VERSION = 1


@dataclass(frozen=True)
class ClassifyResult:
    """What a finished classification left behind. metrics: of the validation photos, by the registered network."""

    run_id: str
    model: tracking.RegisteredModel
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The job's last line."""
        model = {"name": self.model.name, "version": int(self.model.version)}
        return json.dumps({"run_id": self.run_id, "model": model, "metrics": self.metrics})


@dataclass(frozen=True)
class ClassifyTask:
    """What every worker is given."""

    settings: ClassifySettings
    labels: tuple[str, ...]
    image_size: int
    images: Photos
    validation: Photos
    start: dict[str, torch.Tensor] | None
    events: Queue


def classify(settings: ClassifySettings) -> ClassifyResult:
    """Train, validate and register a classifier, resuming an interrupted run of the same name.

    Raises ConfigurationError for settings that the shards or the cluster can't serve, RayganError for anything
    else that went wrong, each with the way out.
    """
    data = DataSet.open(settings.data)
    check_data(data)
    tracking.connect(settings)
    start = _start(settings)
    cluster.connect(settings)
    resources = cluster.worker_resources(settings)
    cluster.require(settings.fewest_workers, resources)
    default_name = time.strftime("classify-%Y%m%d-%H%M%S")
    found = chosen_generators(settings, data)
    run = RunRecord.open(
        # As they are now: whoever is champion later must not change what another began.
        settings.model_copy(update={"model": [one.name for one in found]}),
        settings.name or default_name,
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        allow_changes=settings.allow_changes,
    )
    labels = tuple(data.manifest.classes)
    images, made_of = training_images(settings, data, found)
    task = ClassifyTask(
        settings=settings,
        labels=labels,
        image_size=data.manifest.image_size,
        images=images,
        validation=load_photos(data, "validation", None),
        start=start,
        events=cluster.queue(),
    )
    params = {**recorded(settings), **made_of, "fingerprint": data.manifest.fingerprint}
    with tracking.start_run(settings, run.name, job="classify", params=params, run_id=run.mlflow_run_id) as log:
        run.save(mlflow_run_id=log.id, state="running")
        print(f"run {run.name} in {run.folder}; --name {run.name} resumes it", flush=True)
        checkpoint, seen = _fit(task, run, resources, log)
        with checkpoint.as_directory() as folder, tempfile.TemporaryDirectory() as scratch:
            metrics = _show(load_classifier(Path(folder)), task.validation, log, seen)
            exported = Path(scratch, "classifier")
            _export(Path(folder), exported, metrics, made_of)
            # What has learnt from generators is no judge of them.
            promote = settings.real_fraction == 1 if settings.promote is None else settings.promote
            model = tracking.register_classifier(log, exported, labels, promote=promote)
            if not promote:
                print(f"the alias of {model.name} stays where it is; --promote moves it to version {model.version}")
        run.save(state="finished")
    return ClassifyResult(log.id, model, metrics)


def check_data(data: DataSet) -> None:
    """Raise ConfigurationError unless a classifier can be trained on the shards and validated on others."""
    manifest = data.manifest
    if len(manifest.classes) < 2:
        raise ConfigurationError(
            f"--data: {data.address} has the one label {', '.join(manifest.classes)}: "
            f"a classifier needs two or more to tell apart"
        )
    for label in manifest.classes:
        if not manifest.count("validation", label):
            raise ConfigurationError(
                f"--data: {data.address} has no validation photo of {label}: "
                f"prepare the shards with a larger --validation"
            )
        if not manifest.count("train", label):
            raise ConfigurationError(f"--data: {data.address} has no photo of {label} to train on: add some")


def chosen_generators(settings: ClassifySettings, data: DataSet) -> list[NamedGenerator]:
    """The generators to draw training images from; none if they are all real.

    Raises RayganError or ConfigurationError if they can't be had, or don't draw what the shards hold.
    """
    _, generated = _sizes(settings, data)
    return matching_generators(settings, settings.model, data) if generated else []


def training_images(
    settings: ClassifySettings, data: DataSet, found: Sequence[NamedGenerator]
) -> tuple[Photos, dict[str, Any]]:
    """The images to train on, and what they are made of, for the record. found: generators of the generated ones.

    Raises ConfigurationError if there are too few images.
    """
    classes = data.manifest.classes
    real, generated = _sizes(settings, data)
    parts = []
    made_of: dict[str, Any] = {"real": real, "generated": generated}
    if real:
        photos = load_photos(data, "train", None)
        parts.append(photos if real == len(photos) else balanced_subset(photos, real, len(classes), settings.seed))
    if generated:
        made_of["generators"] = ", ".join(one.name for one in found)
        parts.append(generated_photos(found, classes, generated, settings.seed))
    return combined(*parts), made_of


def _sizes(settings: ClassifySettings, data: DataSet) -> tuple[int, int]:
    """Real photos and generated images to train on. Raises ConfigurationError if they don't make a batch."""
    there = data.manifest.count("train")
    real, generated = mixture_sizes(settings.real_images, settings.real_fraction, there, settings.generated_images)
    if real + generated < settings.batch_size:
        raise ConfigurationError(
            f"--batch-size: {real + generated} training images are fewer than one batch of {settings.batch_size}: "
            f"lower --batch-size, or add images"
        )
    return real, generated


def _start(settings: ClassifySettings) -> dict[str, torch.Tensor] | None:
    if settings.weights is None:
        return None
    path = None if settings.weights == "imagenet" else settings.weights
    return imagenet_start(path, auxiliary=settings.auxiliary_weight > 0)


def _fit(
    task: ClassifyTask, run: RunRecord, resources: dict[str, float], log: tracking.Run
) -> tuple[ray.train.Checkpoint, int]:
    """Run the trainer, showing progress; the best checkpoint, and the training images seen in all."""
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
    per_epoch = len(task.images) // settings.batch_size * settings.batch_size
    with reservations.returned_cores(), ImageProgress(per_epoch * settings.epochs, "training") as progress:
        result = progress.follow(task.events, InBackground(trainer.fit, "training"))
    if not result.best_checkpoints:
        raise RayganError(f"run {run.name} ended without a checkpoint")
    best, _ = min(result.best_checkpoints, key=lambda pair: float(pair[1]["validation_nll"]))
    # Not of the last report: a run that was cut off after its last epoch reports nothing more when it is resumed.
    return best, max(int(metrics["images"]) for _, metrics in result.best_checkpoints)


def classify_worker(config: dict[str, Any]) -> None:
    """One rank's training loop; runs under Ray Train, which has set up the process group."""
    task: ClassifyTask = config["task"]
    settings = task.settings
    share, device = place_of(settings)
    per_epoch = len(task.images) // settings.batch_size
    fit = ClassifierFit(
        len(task.labels),
        fit_settings(settings, device, sync_batch_norm=settings.sync_batch_norm),
        per_epoch * settings.epochs,
        device,
        share,
        task.start,
    )
    best = Best()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            best = _load(Path(folder), fit)

    def tell(images: int, failed: str = "") -> None:
        if share.rank == 0:
            task.events.actor.put_nowait.remote(Seen(images, says=best.says(), failed=failed))

    lessons = Lessons(fit, task.images, task.validation, tell)
    tell(lessons.images_seen)
    while fit.batches_done < fit.batches and not (lessons.is_settling and best.is_stale(settings.patience)):
        epoch = fit.batches_done // per_epoch + 1
        metrics = lessons.learn(epoch * per_epoch)
        metrics |= {f"validation_{name}": value for name, value in lessons.examine().items()}
        if not math.isfinite(metrics["validation_nll"]):
            tell(lessons.images_seen, f"the training diverged in epoch {epoch}: give a lower --learning-rate")
            return
        best.saw(metrics)
        _report(metrics | {"epoch": epoch, "images": lessons.images_seen}, fit, task, best)


@dataclass
class Best:
    """The best examination so far: by its loss, which tells more than accuracy where photos are few."""

    nll: float = float("inf")
    accuracy: float = 0.0
    epochs_since: int = 0

    def saw(self, metrics: dict[str, float]) -> None:
        """Take note of an epoch."""
        if metrics["validation_nll"] < self.nll:
            self.nll, self.accuracy, self.epochs_since = metrics["validation_nll"], metrics["validation_accuracy"], 0
        else:
            self.epochs_since += 1

    def is_stale(self, patience: int) -> bool:
        """Whether the last `patience` epochs have brought nothing; 0 is endless patience."""
        return 0 < patience <= self.epochs_since

    def says(self) -> str:
        """For the progress bar."""
        return f"best accuracy {self.accuracy:.1%}" if self.accuracy else ""


def _report(metrics: dict[str, float], fit: ClassifierFit, task: ClassifyTask, best: Best) -> None:
    if fit.share.rank:
        ray.train.report(metrics)
        return
    about = {name: metrics[name] for name in ("epoch", "images")}
    folder = Path(tempfile.mkdtemp(prefix="raygan-checkpoint-"))
    save_classifier(folder, fit.ema, labels=task.labels, image_size=task.image_size, about=about)
    save_tensors(folder / "fit.safetensors", fit.state())
    state = {"batches": fit.batches_done, "best": vars(best)}
    save_description(folder / "fit.json", _VERSION, state)
    # The next epoch begins while the files are copied to storage; Ray deletes the folder afterwards.
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
    )


def _load(folder: Path, fit: ClassifierFit) -> Best:
    state = load_description(folder / "fit.json", _VERSION)
    fit.load_state(load_tensors(folder / "fit.safetensors"), int(state["batches"]))
    return Best(**state["best"])


def _show(classifier: Classifier, validation: Photos, log: tracking.Run, step: int) -> dict[str, float]:
    """Judge the validation photos by the chosen network: metrics and pictures to MLflow, and the metrics."""
    blocks = [validation.block(number) for number in range(len(validation.rows))]
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in blocks]))
    targets = torch.from_numpy(np.concatenate([classes for _, classes in blocks]))
    probabilities = classifier.probabilities(images)
    metrics = score(probabilities, targets)
    log.log_metrics({f"best_{name}": value for name, value in metrics.items()}, step)
    log.log_bytes(charts.confusion(confusion(probabilities, targets), classifier.labels), "pictures/confusion.png")
    log.log_bytes(charts.calibration(probabilities, targets), "pictures/calibration.png")
    sheet = _mistakes(classifier.labels, images, probabilities, targets)
    if sheet is not None:
        log.log_bytes(sheet, "pictures/misclassified.png")
    return metrics | {"validation_photos": float(len(images))}


def _mistakes(
    labels: tuple[str, ...], images: torch.Tensor, probabilities: torch.Tensor, targets: torch.Tensor
) -> bytes | None:
    """A contact sheet of wrongly judged photos, the surest first; None if there are none."""
    called = probabilities.argmax(1)
    wrong = torch.nonzero(called != targets).flatten()
    if not len(wrong):
        return None
    own = probabilities[wrong].gather(1, targets[wrong][:, None]).flatten()
    wrong = wrong[own.argsort()][:SHOWN]
    captions = [
        f"{labels[int(targets[i])]}? {labels[int(called[i])]} {float(probabilities[i].max()):.0%}" for i in wrong
    ]
    return pictures.png(charts.captioned(images[wrong], captions))


def _export(checkpoint: Path, folder: Path, metrics: dict[str, float], made_of: dict[str, Any]) -> None:
    """The classifier's files, with its scores and what it was trained on in their description."""
    folder.mkdir()
    (folder / "classifier.safetensors").write_bytes((checkpoint / "classifier.safetensors").read_bytes())
    description = json.loads((checkpoint / "classifier.json").read_text(encoding="utf-8"))
    description["about"] |= made_of | {f"validation_{name}": value for name, value in metrics.items()}
    (folder / "classifier.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
