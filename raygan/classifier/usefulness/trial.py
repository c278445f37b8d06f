"""One training of the study, and its result in storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.tune
from ray.util.queue import Queue

from raygan.classifier.loop import ClassifierLoop
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.step import ClassifierStep
from raygan.metrics.classification import score
from raygan.models.hardware import keep_freed_memory
from raygan.runtime import capacity, storage
from raygan.runtime.progress import Seen

if TYPE_CHECKING:
    from raygan.classifier.usefulness.sets import TrialImages


@dataclass(frozen=True)
class Trial:
    """What one training trains on.

    Attributes:
        real: real photos.
        generated: generated images.
        fraction: share of real photos, 0 to 1.
        seed: of the weights and of the choice of photos and latents.
    """

    real: int
    generated: int
    fraction: float
    seed: int

    @property
    def key(self) -> str:
        """Its file name in storage."""
        return f"real{self.real}-generated{self.generated}-seed{self.seed}"

    @property
    def mixture(self) -> str:
        """Its line in the chart."""
        if not self.real:
            return "generated only (CAS)"
        return "real only" if not self.generated else f"{self.fraction:.0%} real, the rest generated"

    @property
    def kind(self) -> tuple[str, int, int]:
        """What trainings that differ only in their seed share: mixture, real photos and generated images."""
        return self.mixture, self.real, self.generated


@dataclass(frozen=True)
class SharedTask:
    """What all trainings of a study are given.

    Attributes:
        settings: of the study.
        photos: all photos of the shards, of which each training is validated on some.
        labels: number of labels.
        length: of each training, in images.
        events: where progress goes.
        folder: the study's, in storage.
    """

    settings: UsefulnessSettings
    photos: int
    labels: int
    length: int
    events: Queue
    folder: str


def run_trial(config: dict[str, Any], task: SharedTask, sets: Sequence[tuple[Trial, TrialImages]]) -> None:
    """Train in a process of Ray Tune's and write the result to storage.

    Args:
        config: `number` of the training set.
        task: shared by all trainings.
        sets: each trial with its images.
    """
    trial, images = sets[config["number"]]
    settings = task.settings.model_copy(update={"seed": trial.seed})
    capacity.use_own_cores()
    keep_freed_memory()
    step = ClassifierStep(task.labels, settings, task.length, capacity.own_device())

    def progress(seen: int) -> None:
        task.events.actor.put_nowait.remote(Seen(seen, worker=trial.key))

    progress(0)
    loop = ClassifierLoop(step, images.draw(), images.validation, progress)
    loop.train_until(task.length)
    trained = loop.means()
    probabilities, classes = loop.predict()
    right = np.full(task.photos, "-")
    scored = images.numbers[images.validation.numbers(loop.validated)]
    right[scored] = np.where((probabilities.argmax(1) == classes).numpy(), "1", "0")
    result = {**asdict(trial), **trained, **score(probabilities, classes), "right": "".join(right)}
    if not math.isfinite(result["nll"]):
        # It would diverge again, so this is final.
        result = {**asdict(trial), "diverged": True}
    storage.write_json(_address(task.folder, trial), result)
    ray.tune.report(result)


def load_results(folder: str, trials: Sequence[Trial]) -> dict[Trial, dict[str, Any]]:
    """The results of the trials that are done, in the order of `trials`.

    Besides numbers, ``right`` has a character for each photo of the shards, training photos first: 1 for right, 0 for
    wrong, - for a photo on which the training was not validated.
    """
    return {trial: result for trial in trials if (result := storage.read_json(_address(folder, trial)))}


def _address(folder: str, trial: Trial) -> str:
    return storage.join(folder, "trials", f"{trial.key}.json")
