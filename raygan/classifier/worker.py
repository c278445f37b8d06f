"""What runs on every rank of a classification: train an epoch, validate, report a checkpoint, repeat.

Ray Train starts `classify_worker`. It stops early when the validation loss has stopped falling, and resumes from the
last checkpoint if there is one.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.util.queue import Queue
from torch import Tensor

from raygan.classifier.loop import ClassifierLoop
from raygan.classifier.settings import ClassifySettings
from raygan.classifier.step import ClassifierStep
from raygan.data.photos import Photos
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.models.weights import load_description, load_tensors, save_description, save_tensors
from raygan.runtime.progress import Seen
from raygan.training.build import this_rank

_VERSION = 1


@dataclass(frozen=True)
class ClassifyTask:
    """What every worker is given.

    Attributes:
        settings: of the job.
        labels: in the order of the network's outputs.
        image_size: side in px.
        images: what to train on.
        validation: held-out real photos.
        weights: initial weights, if not random.
        events: where progress goes.
    """

    settings: ClassifySettings
    labels: tuple[str, ...]
    image_size: int
    images: Photos
    validation: Photos
    weights: dict[str, Tensor] | None
    events: Queue

    @property
    def batches_per_epoch(self) -> int:
        """A last batch that would be short is left out."""
        return len(self.images) // self.settings.batch_size


@dataclass
class Best:
    """The best epoch so far by validation loss, which says more than accuracy where photos are few."""

    nll: float = float("inf")
    accuracy: float = 0.0
    epochs_since: int = 0

    def update(self, metrics: dict[str, float]) -> None:
        """Take note of an epoch's metrics."""
        if metrics["validation_nll"] < self.nll:
            self.nll, self.accuracy, self.epochs_since = metrics["validation_nll"], metrics["validation_accuracy"], 0
        else:
            self.epochs_since += 1

    def is_stale(self, patience: int) -> bool:
        """Whether the last `patience` epochs brought no improvement; a patience of 0 never ends."""
        return 0 < patience <= self.epochs_since

    def describe(self) -> str:
        """For the progress bar."""
        return f"best accuracy {self.accuracy:.1%}" if self.accuracy else ""


def classify_worker(config: dict[str, Any]) -> None:
    """One rank's training; Ray Train has set up the process group."""
    task: ClassifyTask = config["task"]
    settings, per_epoch = task.settings, task.batches_per_epoch
    share, device = this_rank()
    step = ClassifierStep(
        len(task.labels),
        settings,
        per_epoch * settings.epochs,
        device,
        share,
        task.weights,
        sync_batch_norm=settings.sync_batch_norm,
    )
    best = Best()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            best = _load(Path(folder), step)

    def progress(images: int, failed: str = "") -> None:
        if share.rank == 0:
            task.events.actor.put_nowait.remote(Seen(images, says=best.describe(), failed=failed))

    loop = ClassifierLoop(step, task.images, task.validation, progress)
    progress(loop.images_seen)
    while step.batches_done < step.batches and not (loop.is_settling and best.is_stale(settings.patience)):
        epoch = step.batches_done // per_epoch + 1
        metrics = loop.train_until(epoch * per_epoch)
        metrics |= {f"validation_{name}": value for name, value in loop.validate().items()}
        if not math.isfinite(metrics["validation_nll"]):
            progress(loop.images_seen, f"the training diverged in epoch {epoch}: give a lower --learning-rate")
            return
        best.update(metrics)
        _report(metrics | {"epoch": epoch, "images": loop.images_seen}, step, task, best)


def _report(metrics: dict[str, float], step: ClassifierStep, task: ClassifyTask, best: Best) -> None:
    if step.share.rank:
        ray.train.report(metrics)
        return
    about = {name: metrics[name] for name in ("epoch", "images")}
    folder = Path(tempfile.mkdtemp(prefix="raygan-checkpoint-"))
    save_classifier(folder, step.ema, labels=task.labels, image_size=task.image_size, about=about)
    save_tensors(folder / "fit.safetensors", step.state())
    state = {"batches": step.batches_done, "draws": step.draws, "best": vars(best)}
    save_description(folder / "fit.json", _VERSION, state)
    # The next epoch begins while the files are copied to storage; Ray deletes the folder afterwards.
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
    )


def checkpoint_bytes(labels: int) -> int:
    """About how many bytes a checkpoint takes: the classifier; and the network, its average and two moments of each."""
    with torch.device("meta"):
        sizes: list[int] = [parameter.numel() for parameter in build_googlenet(labels).parameters()]
    return 5 * 4 * sum(sizes)


def _load(folder: Path, step: ClassifierStep) -> Best:
    state = load_description(folder / "fit.json", _VERSION)
    step.load_state(load_tensors(folder / "fit.safetensors"), int(state["batches"]))
    step.use_draws(state.get("draws", "serial"))  # older checkpoints don't name the only kind there was
    return Best(**state["best"])
