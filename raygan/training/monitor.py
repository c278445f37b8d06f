"""Quality while it trains: a checkpoint in, numbers and a picture out.

The mental model:

1. Once a run, a Ray task computes features of the validation split and of the training photos (`Reference`).
2. Where the cluster has room beside the workers, Ray Train calls a `Judge` with each checkpoint that is due, in a task
   of its own. Where it has none, the first worker asks the judge itself and the training waits: it would lose the
   cores all the same, and a judge that shares them comes minutes late, when a search can stop nobody any more.
3. The judge draws samples and compares their features with the reference. The driver is told, and Ray Train gets the
   number by which it knows the best checkpoint.

The metrics are monitors on a few hundred samples; `jobs/evaluate.py` makes the report card.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.util.queue import Queue
from torch import Tensor

from raygan import pictures
from raygan.data.batches import Photos, load_photos
from raygan.data.shards import DataSet
from raygan.models.features import load_features
from raygan.models.gan import Generator, draw_latents, load_generator
from raygan.models.latents import images_of, seeded
from raygan.runtime import cluster
from raygan.runtime.runs import address_of
from raygan.tracking.networks import feature_network
from raygan.training.events import SCORE, Quality, written
from raygan.training.settings import TrainSettings

#: Training photos that memorisation looks among, spread evenly over the shards.
TRAIN_PHOTOS = 10_000

#: Samples that are shown beside their nearest training photo.
SHOWN = 12

#: Samples that the animal mass is measured on: its network is the slowest, and a mean needs no more.
MASS_SAMPLES = 100

#: Validation photos without which quality isn't measured.
LEAST_VALIDATION = 4


@dataclass(frozen=True)
class Reference:
    """Features of real photos: `validation` (n, d), `train` (m, d), and the training photos' (shard, row)."""

    validation: Tensor
    classes: Tensor
    train: Tensor
    places: np.ndarray


@dataclass(frozen=True)
class Judge:
    """Measures generators; also Ray Train's validation function.

    reference: of a `Reference` in the object store. label: of the one kind of animal, or None for several. threads: of
    a task of its own.
    """

    reference: ray.ObjectRef
    photos: Photos
    network: str
    samples: int
    label: str | None
    threads: int
    events: Queue
    folder: str

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        """Judge a checkpoint in a task of its own."""
        torch.set_num_threads(min(self.threads, os.cpu_count() or 1))
        with checkpoint.as_directory() as folder:
            generator, about = load_generator(Path(folder))
        images = round(about["kimg"] * 1000)
        metrics, value = self.measure(generator, images)
        self.events.put(Quality(metrics, images, value, address_of(self.folder, checkpoint)))
        return {SCORE: -value, "judged": {"metrics": metrics, "kid": value}}

    def measure(self, generator: Generator, images: int) -> tuple[dict[str, float], float]:
        """Metrics of a generator that has seen so many images, by their full names, and its KID."""
        # Here, not above: the driver needs none of it, and torch-fidelity takes seconds to import.
        from raygan.metrics.animals import AnimalMass, animal_mass
        from raygan.metrics.distances import kid, nearest

        reference: Reference = ray.get(self.reference)
        drawn = draw(generator, self.samples, seed=1, like=reference.classes)
        network = load_features(self.network)
        features = network(drawn)
        value, error = kid(reference.validation, features)
        name = f"kid{self.samples}_{network.name}"
        distances, neighbours = nearest(features, reference.train)
        held_back, _ = nearest(reference.validation, reference.train)
        metrics = {
            name: value,
            f"{name}_error": error,
            # Copies are nearer to the training photos than photos are that the training never saw: below 1.
            f"train_distance{self.samples}_{network.name}": float(distances.mean() / held_back.mean()),
        }
        if self.label and AnimalMass.knows(self.label):
            metrics[f"animal_mass{MASS_SAMPLES}_{self.label}"] = animal_mass()(drawn[:MASS_SAMPLES], self.label)
        self._show_nearest(drawn[:SHOWN], neighbours[:SHOWN], reference, images)
        return metrics, value

    def _show_nearest(self, drawn: Tensor, neighbours: Tensor, reference: Reference, images: int) -> None:
        photos = torch.from_numpy(self.photos.pixels(reference.places[neighbours.numpy()]))
        picture = pictures.side_by_side([("generated", drawn), ("nearest training photo", photos)], 4)
        path = f"pictures/nearest-{images:09d}-images.png"
        self.events.put(written(self.folder, path, pictures.png(picture)))


def draw(generator: Generator, count: int, *, seed: int, like: Tensor | None = None) -> Tensor:
    """uint8 samples (count, 3, S, S), the same for the same seed.

    like: class numbers whose proportions a conditional generator keeps to, instead of every class in turn.
    """
    latents = draw_latents(count, generator.settings.z_dim, seeded(seed, 0, "judge"))
    classes = None
    if generator.labels:
        known = like if like is not None and len(like) else torch.arange(len(generator.labels))
        classes = known.repeat(-(-count // len(known)))[:count]
    return images_of(generator, latents, classes)


def measure(train: Photos, validation: Photos, network: str) -> Reference:
    """The reference of a run."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    features = load_features(network)
    held_back = [validation.block(number) for number in range(len(validation.rows)) if validation.rows[number]]
    vectors = torch.cat([features(torch.from_numpy(pixels.copy())) for pixels, _ in held_back])
    classes = torch.from_numpy(np.concatenate([numbers for _, numbers in held_back]))
    places = train.spread(TRAIN_PHOTOS)
    shards = np.split(places, np.flatnonzero(np.diff(places[:, 0])) + 1)
    trained = torch.cat([features(torch.from_numpy(train.pixels(part))) for part in shards])
    return Reference(vectors, classes, trained, places)


def start_measuring(
    settings: TrainSettings, data: DataSet, train: Photos, at_once: int = 1
) -> tuple[ray.ObjectRef, float]:
    """Start the task that measures the reference; its future result, and the cores that each judge may take.

    at_once: trainings that share the cluster.
    """
    validation = load_photos(data, "validation", settings.label)
    nodes = [node.get("CPU", 0.0) for node in cluster.nodes()]
    cores = cores_beside(nodes, at_once * settings.most_workers, settings.cpus_per_worker)
    measuring = ray.remote(measure).options(num_cpus=cores)
    return measuring.remote(train, validation, settings.quality_network), cores


def can_judge(validation: int) -> bool:
    """Whether so many validation photos are enough for KID to say anything."""
    return validation >= LEAST_VALIDATION


def with_network(settings: TrainSettings) -> TrainSettings:
    """The settings with their feature network as workers load it. Raises ConfigurationError if it can't be had."""
    if settings.quality_every == 0:
        return settings
    network = feature_network(settings, settings.quality_network, "--quality-network")
    return settings.model_copy(update={"quality_network": network})


def cores_beside(nodes: Sequence[float], workers: int, each: float) -> float:
    """Cores that a judge reserves; 0 if some placement of the workers would leave no node with one core for it.

    nodes: cores of each. workers, each: how many workers there are, and how many cores each takes. A judge that fits
    nowhere would wait until the training is over, and on a node too small for it for ever.
    """
    if not nodes:
        return 0
    # Whatever the placement, a node has left what the most workers that fit there leave, and some node the average.
    least = max(cores - each * min(workers, int((cores + 1e-6) // each)) for cores in nodes)
    average = (sum(nodes) - each * workers) / len(nodes)
    free = min(max(least, average), max(nodes) / 2)
    return free if free >= 1 else 0
