"""The images a classifier trains on: real photos, generated images or both, as blocks in Ray's object store.

A block of generated images has the form of a shard's (see `raygan.data.photos.Photos`): pixels and classes. So code
that trains on photos trains on any mixture, and all workers and trials of a node map the same memory. Tasks that make
blocks reserve no cores: when a block's node is lost, the workers hold all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from raygan import tracking
from raygan.classifier.settings import ClassifySettings
from raygan.data.photos import InMemory, InStore, Joined, Photos
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
    tracking.check_labels(manifest.classes)


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
        if real != len(photos):
            photos = taken(photos, balanced_numbers(photos, data.counts("train"), real, settings.seed))
        parts.append(photos)
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


def balanced_numbers(photos: Photos, counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The numbers (size,), among all photos, of a random subset with equally many per label, as far as possible.

    A larger subset of the same seed contains the smaller ones. Only shards with photos of the subset are read.

    Args:
        photos: real photos to draw from.
        counts: photos of each label in each of their shards, int (shards, labels).
        size: of the subset.
        seed: of the draw.

    Raises:
        ConfigurationError: there are fewer than `size` photos.
    """
    if size > len(photos):
        raise ConfigurationError(
            f"--real-images: {size} real photos are asked for, but the shards have {len(photos)} to train on: "
            f"ask for fewer real or generated images"
        )
    labels, nths = balanced(counts.sum(axis=0), size, seed).T
    ends = np.cumsum(counts, axis=0)
    shards = np.empty(size, np.int64)
    for label in np.unique(labels).tolist():
        shards[labels == label] = np.searchsorted(ends[:, label], nths[labels == label], side="right")
    rows = np.empty(size, np.int64)
    for shard in np.unique(shards).tolist():
        classes = photos.block(shard)[1]
        for at in np.flatnonzero(shards == shard).tolist():
            label = labels[at]
            rows[at] = np.flatnonzero(classes == label)[nths[at] - (ends - counts)[shard, label]]
    return photos.numbers(np.stack([shards, rows], 1))


def taken(photos: Photos, numbers: np.ndarray) -> Photos:
    """A few photos, by their numbers, as blocks of their own in the object store, in the order of their shards."""
    few = photos.only(numbers)
    held, take = ray.put(few), ray.remote(_take).options(num_cpus=0)
    starts = [functools.partial(take.remote, held, number) for number in range(len(few.rows))]
    return Photos(few.rows, InStore(tuple(cluster.run_all(starts, "taking photos", unit="shard"))))


def balanced(counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Photos taken from the labels in turn, in random order within each label.

    Args:
        counts: photos of each label.
        size: how many to take.
        seed: of the order.

    Returns:
        Each photo's label and its number among those of the label, int64 (size, 2).
    """
    random = np.random.default_rng([seed, 7])
    orders = [random.permutation(count) for count in counts.tolist()]
    labels = np.repeat(np.arange(len(counts)), counts)
    turns = np.concatenate([np.arange(len(order)) for order in orders]) + labels / len(counts)
    chosen = np.argsort(turns, kind="stable")[:size]
    return np.stack([labels, np.concatenate(orders)], 1)[chosen]


def generated_photos(generators: Sequence[NamedGenerator], labels: Sequence[str], count: int, seed: int) -> Photos:
    """Images of `drawn_photos` from tasks all over the cluster, in the object store, with a progress bar.

    Raises:
        RayganError: no generator draws one of the labels, or a task failed.
    """
    check_drawn(generators, labels)
    refs = {one.name: ray.put(one) for one in generators}
    generate = ray.remote(_generate_alone).options(num_cpus=0, num_gpus=capacity.gpu_share())
    parts = _parts(generators, labels, count)
    starts = [
        functools.partial(generate.remote, refs[one.name], labels[number], number, size, seed, first)
        for one, number, size, first in parts
    ]
    blocks = tuple(cluster.run_all(starts, "generating images", unit="block"))
    return Photos(tuple(size for *_, size, _ in parts), InStore(blocks))


def drawn_photos(generators: Sequence[NamedGenerator], labels: Sequence[str], count: int, seed: int) -> Photos:
    """Generate images in this process, on its device.

    Args:
        generators: those that draw the same label share its images.
        labels: each gets the same number of images, to within one.
        count: images in all.
        seed: of the latents.
    """
    parts = _parts(generators, labels, count)
    blocks = tuple(_generate(one, labels[number], number, size, seed, first) for one, number, size, first in parts)
    return Photos(tuple(size for *_, size, _ in parts), InMemory(blocks))


def _parts(
    generators: Sequence[NamedGenerator], labels: Sequence[str], count: int
) -> list[tuple[NamedGenerator, int, int, int]]:
    """What to draw: generator, number of the label, images, and number of the first of them."""
    parts = []
    for number, label in enumerate(labels):
        able = [one for one in generators if label in one.labels]
        wanted = count * (number + 1) // len(labels) - count * number // len(labels)
        for turn, one in enumerate(able):
            share = wanted * (turn + 1) // len(able) - wanted * turn // len(able)
            parts += [(one, number, min(_TASK, share - first), _FIRST + first) for first in range(0, share, _TASK)]
    return parts


def combine(*parts: Photos) -> Photos:
    """The photos of all parts."""
    starts = np.cumsum([0, *(len(part.rows) for part in parts[:-1])]).tolist()
    rows = tuple(count for part in parts for count in part.rows)
    mixed = min(part.mixed for part in parts)
    return Photos(rows, Joined(tuple(part.source for part in parts), tuple(starts)), mixed)


def _take(photos: Photos, number: int) -> Stored:
    return photos.source.read(number)


def _generate_alone(one: NamedGenerator, label: str, number: int, count: int, seed: int, first: int) -> Stored:
    torch.set_num_threads(1)  # tasks run on all cores
    return _generate(one, label, number, count, seed, first)


def _generate(one: NamedGenerator, label: str, number: int, count: int, seed: int, first: int) -> Stored:
    pixels = one.sample(label, count, seed, first).numpy()
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), np.full(count, number, np.int64)
