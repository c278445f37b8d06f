"""What each training of the study learns from, and the photos it is validated on: none that it or its generator saw.

By default a conditional generator is trained on each draw of real photos alone, and all other photos validate. A
generator from elsewhere may have seen any training photo, so then only the shards' validation photos validate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import ray

from raygan.classifier.mixture import balanced_numbers, combine, drawn_photos, taken
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.usefulness.trial import Trial
from raygan.data.batches import BatchStream
from raygan.data.photos import Photos
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.models.distributed import Share
from raygan.models.gan import Generator, save_generator
from raygan.models.hardware import keep_freed_memory, on_device
from raygan.runtime import capacity, cluster, storage
from raygan.sampling.generators import NamedGenerator, check_drawn, find_generators
from raygan.settings import load_preset
from raygan.training.build import new_step
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings


@dataclass(frozen=True)
class TrialImages:
    """The images of one training run.

    Attributes:
        real: photos to train on; None for none.
        generated: number of generated images to add.
        generators: that draw them.
        labels: of all images.
        seed: of their latents.
        validation: photos that neither the classifier nor its generator has seen.
        numbers: of the validation photos (n,) among all photos of the shards, training photos first.
    """

    real: Photos | None
    generated: int
    generators: Sequence[NamedGenerator]
    labels: Sequence[str]
    seed: int
    validation: Photos
    numbers: np.ndarray

    def draw(self) -> Photos:
        """All that it trains on; images are generated now, in this process."""
        parts = [] if self.real is None else [self.real]
        if self.generated:
            parts.append(drawn_photos(self.generators, self.labels, self.generated, self.seed))
        return combine(*parts)


def generator_settings(settings: UsefulnessSettings, data: DataSet) -> TrainSettings:
    """The training of each generator.

    Raises:
        ConfigurationError: there is no such preset.
    """
    values = {
        **load_preset(TrainSettings, settings.generator_preset),
        "image_size": data.manifest.image_size,
        "data": settings.data,
        "conditional": True,
        "epochs": 1,
        "kimg": settings.generator_kimg,
        "cpus_per_worker": settings.cpus_per_trial,
    }
    return TrainSettings.model_validate(values)


def lay_out(
    settings: UsefulnessSettings,
    data: DataSet,
    trials: Sequence[Trial],
    elsewhere: Sequence[NamedGenerator],
    folder: str,
    needs: dict[str, float],
) -> list[TrialImages]:
    """The images of each trial; the generators that they need are trained first, unless they are from elsewhere.

    Args:
        settings: of the study.
        data: the shards.
        trials: what to train.
        elsewhere: generators that are there already; empty to train one per real set that gets generated images.
        folder: the study's, which keeps the generators.
        needs: CPU and GPU that each training reserves.

    Raises:
        RayganError: a generator can't be trained, or can't draw.
    """
    labels = data.manifest.classes
    photos, held_out = load_photos(data, "train", None), load_photos(data, "validation", None)
    everything, counts = combine(photos, held_out), data.counts("train")
    draws = {
        (trial.real, trial.seed): balanced_numbers(photos, counts, trial.real, trial.seed)
        for trial in trials
        if trial.real
    }
    sets = {draw: taken(photos, numbers) for draw, numbers in draws.items()}
    mixed = {(trial.real, trial.seed) for trial in trials if trial.generated and not elsewhere}
    own = _own_generators(settings, data, {draw: sets[draw] for draw in sets if draw in mixed}, folder, needs)
    found = []
    for trial in trials:
        draw = trial.real, trial.seed
        seen = draws.get(draw, np.empty(0, np.int64))
        unseen = np.arange(len(everything))
        unseen = unseen[len(photos) :] if elsewhere else np.delete(unseen, seen)
        generators = (elsewhere or [own[draw]]) if trial.generated else []
        check_drawn(generators, labels if generators else [])
        found.append(
            TrialImages(
                real=sets.get(draw),
                generated=trial.generated,
                generators=generators,
                labels=labels,
                seed=trial.seed,
                validation=everything.only(unseen),
                numbers=unseen,
            )
        )
    return found


def _own_generators(
    settings: UsefulnessSettings,
    data: DataSet,
    draws: dict[tuple[int, int], Photos],
    folder: str,
    needs: dict[str, float],
) -> dict[tuple[int, int], NamedGenerator]:
    """A generator trained on each draw of photos alone, kept in the study's folder."""
    training = generator_settings(settings, data)
    train = ray.remote(train_generator).options(num_cpus=needs["CPU"], num_gpus=needs["GPU"])
    places = {draw: storage.join(folder, "generators", f"real{draw[0]}-seed{draw[1]}") for draw in draws}
    tasks = [
        train.remote(training.model_copy(update={"seed": draw[1]}), photos, tuple(data.manifest.classes), places[draw])
        for draw, photos in draws.items()
        if not storage.is_file(storage.join(places[draw], "generator.json"))
    ]
    cluster.wait_for(tasks, "training generators", unit="generator", leave=True)
    cluster.fetch(tasks)
    found = {draw: find_generators(settings, [place], []) for draw, place in places.items()}
    return {draw: one for draw, (one,) in found.items()}


def train_generator(settings: TrainSettings, photos: Photos, labels: tuple[str, ...], folder: str) -> None:
    """Train a conditional generator on a few photos, in one process, and write its EMA to a folder.

    Args:
        settings: of the training.
        photos: all that it learns from.
        labels: of the photos.
        folder: where to write.
    """
    capacity.use_own_cores()
    keep_freed_memory()
    settings = settings.model_copy(update={"batch_size": min(settings.batch_size, len(photos))})
    schedule = Schedule.of(settings, len(photos), settings.batch_size)
    step = new_step(settings, schedule, labels, capacity.own_device())
    stream = BatchStream(photos, settings.batch_size, settings.seed, Share())
    for reals, classes in on_device(stream.starting_at(0), step.device):
        if step.images_seen >= schedule.total:
            break
        step.step(reals, classes)
    about = {"labels": list(labels), "photos": len(photos), "kimg": step.images_seen / 1000}
    with tempfile.TemporaryDirectory() as scratch:
        save_generator(Path(scratch), cast(Generator, step.ema.module), about)
        for name in ("generator.safetensors", "generator.json"):  # the JSON last: it marks the folder as complete
            storage.write_bytes(storage.join(folder, name), Path(scratch, name).read_bytes())
