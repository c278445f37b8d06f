"""The images a classifier trains on: real photos, generated images or both, as blocks in Ray's object store.

A block of generated images has the form of a shard's (see `raygan.data.photos.Photos`): pixels and classes. So code
that trains on photos trains on any mixture, and all workers and trials of a node map the same memory. Tasks that make
blocks take no cores from Ray's books: should a block's node be lost, the workers hold all cores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from raygan.classifier.settings import ClassifySettings
from raygan.data.photos import InStore, Joined, Photos
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet, Stored
from raygan.errors import ConfigurationError
from raygan.runtime import capacity, cluster
from raygan.sampling.generators import NamedGenerator, check_drawn, matching_generators

#: Images that one task generates.
_TASK = 256

#: Number of the first training image: `jobs/evaluate.py` with the same seed must judge other images.
_FIRST = 1 << 31


def check_data(data: DataSet) -> None:
    """Check that the shards can train and validate a classifier.

    Raises:
        ConfigurationError: there is one label only, or a label lacks training or validation photos.
    """
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


def choose_generators(settings: ClassifySettings, data: DataSet) -> list[NamedGenerator]:
    """The generators to draw training images from; none if all images are real.

    Raises:
        RayganError: no generator is found, its files are damaged, or it doesn't fit the shards.
    """
    _, generated = _sizes(settings, data)
    return matching_generators(settings, settings.model, data) if generated else []


def training_images(
    settings: ClassifySettings, data: DataSet, generators: Sequence[NamedGenerator]
) -> tuple[Photos, dict[str, Any]]:
    """The images to train on, and their origin for the record.

    Raises:
        ConfigurationError: there are too few images.
    """
    classes = data.manifest.classes
    real, generated = _sizes(settings, data)
    parts = []
    origin: dict[str, Any] = {"real": real, "generated": generated}
    if real:
        photos = load_photos(data, "train", None, settings.data_memory)
        parts.append(photos if real == len(photos) else balanced_subset(photos, real, len(classes), settings.seed))
    if generated:
        origin["generators"] = ", ".join(one.name for one in generators)
        parts.append(generated_photos(generators, classes, generated, settings.seed))
    return combine(*parts), origin


def _sizes(settings: ClassifySettings, data: DataSet) -> tuple[int, int]:
    """How many real photos and generated images to train on; at least a batch together."""
    photos = data.manifest.count("train")
    real, generated = mixture_sizes(settings.real_images, settings.real_fraction, photos, settings.generated_images)
    if real + generated < settings.batch_size:
        raise ConfigurationError(
            f"--batch-size: {real + generated} training images are fewer than one batch of {settings.batch_size}: "
            f"lower --batch-size, or add images"
        )
    return real, generated


def mixture_sizes(real: int | None, fraction: float, photos: int, generated: int | None) -> tuple[int, int]:
    """How many real photos and generated images make a training set of which `fraction` is real.

    Args:
        real: real photos asked for; by default all, unless `generated` and `fraction` decide.
        fraction: share of real photos, 0 to 1.
        photos: real photos available.
        generated: generated images asked for; by default as many as `fraction` implies, for 0 as many as photos.

    Raises:
        ConfigurationError: both numbers are given, and they contradict the fraction.
    """
    if fraction == 1:
        return (photos if real is None else real), 0
    if fraction == 0:
        return 0, (photos if generated is None else generated)
    if real is not None and generated is not None:
        if abs(real / (real + generated) - fraction) > 0.01:
            raise ConfigurationError(
                f"--real-fraction: {real} real photos and {generated} generated images make "
                f"{real / (real + generated):.3g}, not {fraction:g}: leave one of the three out"
            )
        return real, generated
    if generated is not None:
        return max(1, round(generated * fraction / (1 - fraction))), generated
    real = photos if real is None else real
    return real, max(1, round(real * (1 - fraction) / fraction))


def balanced_subset(photos: Photos, count: int, labels: int, seed: int) -> Photos:
    """A random subset with equally many photos per label, as far as there are enough.

    A larger subset of the same seed contains the smaller ones.

    Args:
        photos: real photos to draw from.
        count: size of the subset.
        labels: number of labels.
        seed: of the draw.

    Raises:
        ConfigurationError: there are fewer than `count` photos.
    """
    return taken(photos, balanced_indices(photos, count, labels, seed))


def balanced_indices(photos: Photos, count: int, labels: int, seed: int) -> np.ndarray:
    """The indices (count,) of `balanced_subset`, among all photos in the order of their shards."""
    if count > len(photos):
        raise ConfigurationError(f"{count} real photos are asked for, but the shards have {len(photos)} to train on")
    classes = [photos.block(number)[1] for number in range(len(photos.rows))]
    return balanced(np.concatenate(classes), count, labels, seed)


def taken(photos: Photos, indices: np.ndarray) -> Photos:
    """The photos at some indices, in the order of their shards."""
    places = np.array([(shard, row) for shard, rows in enumerate(photos.rows) for row in range(rows)])
    chosen = places[indices]
    held, take = ray.put(photos), ray.remote(_take).options(num_cpus=0)
    rows, starts = [], []
    for shard in np.unique(chosen[:, 0]):
        wanted = np.sort(chosen[chosen[:, 0] == shard, 1])
        rows.append(len(wanted))
        starts.append(functools.partial(take.remote, held, int(shard), wanted))
    return Photos(tuple(rows), InStore(tuple(cluster.run_all(starts, "taking photos", unit="shard"))))


def balanced(classes: np.ndarray, count: int, labels: int, seed: int) -> np.ndarray:
    """Indices of `count` of the classes (n,), taken from the labels in turn, in random order within each label."""
    random = np.random.default_rng([seed, 7])
    turns = np.empty(len(classes))
    for label in range(labels):
        own = random.permutation(np.flatnonzero(classes == label))
        turns[own] = np.arange(len(own)) + label / labels
    return np.argsort(turns, kind="stable")[:count]


def generated_photos(generators: Sequence[NamedGenerator], labels: Sequence[str], count: int, seed: int) -> Photos:
    """Generate images, with a progress bar.

    Args:
        generators: those that draw the same label share its images.
        labels: each gets the same number of images, to within one.
        count: images in all.
        seed: of the latents.

    Raises:
        RayganError: no generator draws one of the labels, or a task failed.
    """
    check_drawn(generators, labels)
    refs = {one.name: ray.put(one) for one in generators}
    generate = ray.remote(_generate).options(num_cpus=0, num_gpus=capacity.gpu_share())
    rows: list[int] = []
    starts = []
    for number, label in enumerate(labels):
        able = [one for one in generators if label in one.labels]
        wanted = count * (number + 1) // len(labels) - count * number // len(labels)
        for turn, one in enumerate(able):
            share = wanted * (turn + 1) // len(able) - wanted * turn // len(able)
            for first in range(0, share, _TASK):
                rows.append(min(_TASK, share - first))
                given = refs[one.name], label, number, rows[-1], seed, _FIRST + first
                starts.append(functools.partial(generate.remote, *given))
    return Photos(tuple(rows), InStore(tuple(cluster.run_all(starts, "generating images", unit="block"))))


def combine(*parts: Photos) -> Photos:
    """The photos of all parts."""
    starts = np.cumsum([0, *(len(part.rows) for part in parts[:-1])]).tolist()
    rows = tuple(count for part in parts for count in part.rows)
    mixed = min(part.mixed for part in parts)
    return Photos(rows, Joined(tuple(part.source for part in parts), tuple(starts)), mixed)


def _take(photos: Photos, shard: int, rows: np.ndarray) -> Stored:
    pixels, classes = photos.source.read(shard)
    return pixels[rows], classes[rows]


def _generate(one: NamedGenerator, label: str, number: int, count: int, seed: int, first: int) -> Stored:
    torch.set_num_threads(1)  # tasks run on all cores
    pixels = one.sample(label, count, seed, first).numpy()
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), np.full(count, number, np.int64)
