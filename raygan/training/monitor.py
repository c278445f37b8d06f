"""Quality while a training runs: a checkpoint in, numbers and a picture out.

1. Once per run, a Ray task computes features of the validation photos that may choose a checkpoint, and of the training
   photos (`Reference`). The other half of the validation photos is held back for `raygan.training.fresh`.
2. Where the cluster has cores free beside the workers, Ray Train calls the `Monitor` with each checkpoint that is due,
   in a task of its own. Otherwise the first worker calls it, and the training waits: it would lose the cores anyway,
   and a task that shares them, or waits for another job's, comes too late for a search to stop a bad trial.
3. The monitor draws samples and compares their features with the reference. The driver is told, and Ray Train gets
   the number by which it picks the best checkpoint. A measurement that fails or takes too long is reported, and the
   training goes on.

A few hundred samples are enough to watch a training; `jobs/evaluate.py` makes the report card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.util.queue import Queue
from torch import Tensor

from raygan import pictures
from raygan.data.photos import Photos
from raygan.errors import RayganError, last_line
from raygan.metrics import animals
from raygan.metrics.distances import KID_LEAST, kid, nearest
from raygan.models.features import Features
from raygan.models.gan import Generator, draw_latents, load_generator
from raygan.models.latents import images_of, seeded
from raygan.models.registry import DEFAULT_FEATURES
from raygan.runtime import capacity, cluster
from raygan.runtime.progress import InBackground
from raygan.runtime.runs import address_of
from raygan.tracking.networks import feature_network, load_network
from raygan.training.events import Quality, Unmeasured
from raygan.training.reports import measurement, written
from raygan.training.settings import TrainSettings

#: Training photos among which memorization is looked for, spread evenly over the shards.
TRAIN_PHOTOS = 10_000

#: Their maximum per minute of `--minutes`, and their minimum: computing their features takes 2 % of a run's time on two
#: cores.
_TRAIN_PHOTOS_PER_MINUTE, _LEAST_TRAIN_PHOTOS = 250, 500

#: Validation photos that generators are compared with, spread evenly over the shards.
VALIDATION_PHOTOS = 10_000

#: Samples shown beside their nearest training photo.
SHOWN = 12

#: Samples on which the animal mass is measured: its network is the slowest, and a mean needs no more.
MASS_SAMPLES = 100

#: Seconds after which a measurement is given up: at least, and for each image. Inception takes 0.3 s of a core.
_PATIENCE_S, _PATIENCE_PER_IMAGE_S = 300.0, 0.5


@dataclass(frozen=True)
class Reference:
    """Features of real photos.

    Attributes:
        validation: features (n, d) of the validation photos that may choose a checkpoint.
        classes: class numbers (n,) of those photos.
        train: features (m, d) of training photos.
        places: (shard, row) of those training photos, (m, 2).
    """

    validation: Tensor
    classes: Tensor
    train: Tensor
    places: np.ndarray


@dataclass(frozen=True)
class Monitor:
    """Measures generators; also Ray Train's validation function.

    Attributes:
        reference: of a `Reference` in the object store.
        photos: the training photos, to show those nearest to samples.
        network: feature network, as workers load it.
        samples: samples to draw for a measurement.
        label: the animal, if there is only one.
        events: queue to the driver.
        folder: the run's folder.
        patience_s: seconds after which a measurement is given up; the first one waits for the reference.
    """

    reference: ray.ObjectRef
    photos: Photos
    network: str
    samples: int
    label: str | None
    events: Queue
    folder: str
    patience_s: float

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        """Measure a checkpoint in a task of its own; returns Ray Train's metrics of it, none if that fails."""
        capacity.use_own_cores()
        with checkpoint.as_directory() as folder:
            generator, about = load_generator(Path(folder))
        images = round(about["kimg"] * 1000)
        measured = self.try_to_measure(generator, images)
        if measured is None:
            return {}
        metrics, value = measured
        self.events.put(Quality(metrics, images, value, address_of(self.folder, checkpoint)))
        return measurement(metrics, value)

    @property
    def ready(self) -> bool:
        """Whether the reference is there; also if it failed, which `try_to_measure` tells."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def try_to_measure(self, generator: Generator, images: int) -> tuple[dict[str, float], float] | None:
        """`measure`, or None if it fails or takes too long. The driver hears of it, and the training goes on.

        If a network or the storage hangs, the thread that called it is left behind.
        """
        measuring = InBackground(lambda: self.measure(generator, images), "measuring", self.folder)
        try:
            return measuring.result(self.patience_s)
        except RayganError as error:
            self.events.put(Unmeasured(images, last_line(error)))
            return None

    def measure(self, generator: Generator, images: int) -> tuple[dict[str, float], float]:
        """Measure a generator.

        Args:
            generator: on the CPU.
            images: real images that its training has seen, for the picture's name.

        Returns:
            Metrics by full name, and the KID among them.
        """
        reference: Reference = ray.get(self.reference)
        drawn = draw(generator, self.samples, seed=1, like=reference.classes)
        network = load_network(self.network)
        features = network(drawn)
        value, error = kid(reference.validation, features)
        name = f"kid{self.samples}_{network.name}"
        distances, neighbors = nearest(features, reference.train)
        held_out, _ = nearest(reference.validation, reference.train)
        metrics = {
            name: value,
            f"{name}_error": error,
            # Below 1 for copies: they are nearer to the training photos than photos that the training never saw.
            f"train_distance{self.samples}_{network.name}": float(distances.mean() / held_out.mean()),
        }
        if self.label and animals.knows(self.label):
            mass = animals.animal_mass(drawn[:MASS_SAMPLES], self.label, DEFAULT_FEATURES)
            metrics[f"animal_mass{len(mass)}_{DEFAULT_FEATURES}"] = float(mass.mean())
        self._show_nearest(drawn[:SHOWN], neighbors[:SHOWN], reference, images)
        return metrics, value

    def _show_nearest(self, drawn: Tensor, neighbors: Tensor, reference: Reference, images: int) -> None:
        photos = torch.from_numpy(self.photos.pixels(reference.places[neighbors.numpy()]))
        picture = pictures.side_by_side([("generated", drawn), ("nearest training photo", photos)], 4)
        path = f"pictures/nearest-{images:09d}-images.png"
        self.events.put(written(self.folder, path, pictures.png(picture)))


def draw(generator: Generator, count: int, *, seed: int, like: Tensor | None = None) -> Tensor:
    """uint8 samples (count, 3, S, S).

    Args:
        generator: on the CPU.
        count: how many.
        seed: of the latents.
        like: class numbers, whose proportions a conditional generator keeps; by default each class in turn.
    """
    latents = draw_latents(count, generator.settings.z_dim, seeded(seed, 0, "judge"))
    classes = None
    if generator.labels:
        known = like if like is not None and len(like) else torch.arange(len(generator.labels))
        classes = known.repeat(-(-count // len(known)))[:count]
    return images_of(generator, latents, classes)


def measure_reference(train: Photos, validation: Photos, network: str, most: int) -> Reference:
    """What generators are compared with: validation photos and up to `most` training photos."""
    capacity.use_own_cores()
    features = load_network(network)
    vectors, classes = features_of(validation, features)
    choosing = ~held_back(classes)
    places = train.spread(most)
    trained = torch.cat([features(torch.from_numpy(pixels)) for pixels, _ in train.parts(places)])
    return Reference(vectors[choosing], classes[choosing], trained, places)


def held_back(classes: Tensor) -> Tensor:
    """Which validation photos take no part in choosing a checkpoint, so that the choice can be measured on them.

    Args:
        classes: class numbers (n,) of all validation photos.

    Returns:
        bool (n,): every second photo of each class; none if `can_hold_back` says so.
    """
    held = torch.zeros(len(classes), dtype=torch.bool)
    if can_hold_back(len(classes)):
        held[classes.argsort(stable=True)[1::2]] = True
    return held


def patience_s(images: int) -> float:
    """Seconds after which a measurement of this many images is given up."""
    return _PATIENCE_S + _PATIENCE_PER_IMAGE_S * images


def features_of(photos: Photos, network: Features) -> tuple[Tensor, Tensor]:
    """Features (n, d) and class numbers (n,) of up to `VALIDATION_PHOTOS` photos, read a shard at a time."""
    vectors, classes = [], []
    for pixels, numbers in photos.parts(photos.spread(VALIDATION_PHOTOS)):
        vectors.append(network(torch.from_numpy(pixels)))
        classes.append(torch.from_numpy(numbers))
    return torch.cat(vectors), torch.cat(classes)


def start_measuring(
    settings: TrainSettings, train: Photos, validation: Photos, at_once: int = 1
) -> tuple[ray.ObjectRef, float]:
    """Start the task that measures the reference.

    Args:
        settings: of the training.
        train: the training photos.
        validation: photos that the training doesn't see.
        at_once: trainings that share the cluster.

    Returns:
        The future `Reference`, and the cores that each measurement may reserve beside the workers; 0 for none.
    """
    nodes = [node.get("CPU", 0.0) for node in cluster.nodes()]
    cores = cores_beside(nodes, at_once * settings.most_workers, settings.cpus_per_worker)
    measuring = ray.remote(measure_reference).options(num_cpus=cores if capacity.free_cores() >= cores else 0)
    most = train_photos(settings.minutes)
    return measuring.remote(train, validation, settings.quality_network, most), cores


def train_photos(minutes: float | None) -> int:
    """Training photos that a run of so many minutes, or None, compares its samples with."""
    if minutes is None:
        return TRAIN_PHOTOS
    return min(TRAIN_PHOTOS, max(_LEAST_TRAIN_PHOTOS, round(_TRAIN_PHOTOS_PER_MINUTE * minutes)))


def can_measure(validation: int) -> bool:
    """Whether `validation` validation photos are enough for KID to mean anything."""
    return validation >= KID_LEAST


def can_hold_back(validation: int) -> bool:
    """Whether each half of `validation` validation photos is enough to measure on."""
    return can_measure(validation // 2)


def with_network(settings: TrainSettings, begun: Mapping[str, Any] = MappingProxyType({})) -> TrainSettings:
    """The settings, with the feature network as workers load it.

    Args:
        settings: of the training.
        begun: those that it began with, if it is resumed: it keeps its classifier.

    Raises:
        ConfigurationError: the network isn't available.
    """
    if settings.quality_every == 0:
        return settings
    before = begun.get("quality_network")
    network = feature_network(settings, settings.quality_network, "--quality-network", before)
    return settings.model_copy(update={"quality_network": network})


def cores_beside(nodes: Sequence[float], workers: int, each: float) -> float:
    """Cores that a measurement may reserve, whatever the placement of the workers; 0 if there may be less than one.

    A measurement that fits nowhere would wait until the training is over, and forever if no node is large enough.

    Args:
        nodes: cores of each node.
        workers: how many there are.
        each: cores that each worker reserves.
    """
    if not nodes:
        return 0
    # A node keeps at least what remains when it is filled with workers, and some node keeps at least the average.
    least = max(cores - each * min(workers, int((cores + 1e-6) // each)) for cores in nodes)
    average = (sum(nodes) - each * workers) / len(nodes)
    free = min(max(least, average), max(nodes) / 2)
    return free if free >= 1 else 0
