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
from raygan.models.googlenet import VERSION, build_googlenet, save_classifier
from raygan.models.weights import load_description, load_tensors, save_description, save_tensors
from raygan.runtime.progress import Seen
from raygan.training.build import this_rank

_VERSION = 1

#: Loss of a checkpoint within an epoch. Not infinity: Ray Train keeps what it knows of checkpoints as JSON.
_WORST = 1e30


@dataclass(frozen=True)
class ClassifyTask:
    """What every worker is given.

    Attributes:
        settings: of the job.
        labels: in the order of the network's outputs.
        image_size: side in px.
        images: what to train on.
        validation: held-out real photos that choose the best epoch.
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
    def epoch(self) -> int:
        """Images in an epoch; a last batch that would be short is left out."""
        return len(self.images) // self.settings.batch_size * self.settings.batch_size


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
    settings = task.settings
    share, device = this_rank()
    step = ClassifierStep(
        len(task.labels),
        settings,
        task.epoch * settings.epochs,
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
    progress(step.images_seen)
    while step.images_seen < step.total and not (loop.is_settling and best.is_stale(settings.patience)):
        epoch = step.images_seen // task.epoch + 1
        loop.train_until(epoch * task.epoch, settings.checkpoint_minutes)
        if step.images_seen < epoch * task.epoch:  # a checkpoint in between
            step.average_statistics()
            # Without a loss, Ray Train would take it for the best; without images, it is not recorded.
            _report({"validation_nll": _WORST}, step, task, best)
            continue
        metrics = loop.means()
        metrics |= {f"validation_{name}": value for name, value in loop.validate().items()}
        if not math.isfinite(metrics["validation_nll"]):
            progress(step.images_seen, f"the training diverged in epoch {epoch}: give a lower --learning-rate")
            return
        best.update(metrics)
        _report(metrics | {"epoch": epoch, "images": step.images_seen}, step, task, best)


def _report(metrics: dict[str, float], step: ClassifierStep, task: ClassifyTask, best: Best) -> None:
    if step.share.rank:
        ray.train.report(metrics)
        return
    about = {"epoch": step.images_seen // task.epoch, "images": step.images_seen}
    folder = Path(tempfile.mkdtemp(prefix="raygan-checkpoint-"))
    save_classifier(folder, step.ema, labels=task.labels, image_size=task.image_size, about=about)
    save_tensors(folder / "fit.safetensors", step.state())
    state = {"images": step.images_seen, "draws": step.draws, "best": vars(best)}
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
    if "images" not in state:  # it once counted batches; images stood in the other file alone
        state |= load_description(folder / "classifier.json", VERSION)["about"]
    step.load_state(load_tensors(folder / "fit.safetensors"), int(state["images"]))
    step.use_draws(state.get("draws", "serial"))  # older checkpoints don't name the only kind there was
    return Best(**state["best"])
