"""Training images of a classifier: real photos, generated ones, or both, as blocks in Ray's object store.

A generated block looks like a shard's (see `raygan.data.batches.Photos`): uint8 pixels (n, 3, S, S), int64 classes.
So whatever trains on photos trains on any mixture, and all workers and trials of a node map the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray

from raygan.data.batches import Block, Photos
from raygan.errors import ConfigurationError
from raygan.runtime import cluster
from raygan.sampling.generators import NamedGenerator, check_drawn

#: Images that one task generates.
_TASK = 256

#: Number of the first image that is trained on: a report card of the same seed shall judge others.
_FIRST = 1 << 31


def combined(*parts: Photos) -> Photos:
    """The photos of all parts."""
    return Photos(tuple(r for part in parts for r in part.rows), tuple(b for part in parts for b in part.blocks))


def balanced_subset(photos: Photos, count: int, labels: int, seed: int) -> Photos:
    """`count` photos, as many of each of the `labels` classes as there are or as an even share is.

    A larger subset of the same seed contains the smaller ones. Raises ConfigurationError if there are fewer.
    """
    if count > len(photos):
        raise ConfigurationError(f"{count} real photos are asked for, but the shards have {len(photos)} to train on")
    classes = [photos.block(number)[1] for number in range(len(photos.rows))]
    places = np.array([(shard, row) for shard, rows in enumerate(photos.rows) for row in range(rows)])
    chosen = places[balanced(np.concatenate(classes), count, labels, seed)]
    take = ray.remote(_take)
    rows, blocks = [], []
    for shard in np.unique(chosen[:, 0]):
        wanted = np.sort(chosen[chosen[:, 0] == shard, 1])
        rows.append(len(wanted))
        blocks.append(take.remote(photos.blocks[shard], wanted))
    return Photos(tuple(rows), tuple(blocks))


def balanced(classes: np.ndarray, count: int, labels: int, seed: int) -> np.ndarray:
    """Indices of `count` of the classes (n,), taken from the labels in turn, each in an order of its own."""
    random = np.random.default_rng([seed, 7])
    turns = np.empty(len(classes))
    for label in range(labels):
        own = random.permutation(np.flatnonzero(classes == label))
        turns[own] = np.arange(len(own)) + label / labels
    return np.argsort(turns, kind="stable")[:count]


def generated_photos(found: Sequence[NamedGenerator], labels: Sequence[str], count: int, seed: int) -> Photos:
    """`count` generated images, equally many of each label (to within one), with a progress bar.

    A label that several generators draw is shared between them. Raises RayganError if one has no generator.
    """
    check_drawn(found, labels)
    held = {one.name: ray.put(one) for one in found}
    generate = ray.remote(_generate)
    rows: list[int] = []
    blocks: list[ray.ObjectRef] = []
    for number, label in enumerate(labels):
        able = [one for one in found if label in one.labels]
        wanted = count * (number + 1) // len(labels) - count * number // len(labels)
        for turn, one in enumerate(able):
            share = wanted * (turn + 1) // len(able) - wanted * turn // len(able)
            for first in range(0, share, _TASK):
                rows.append(min(_TASK, share - first))
                blocks.append(generate.remote(held[one.name], label, number, rows[-1], seed, _FIRST + first))
    cluster.wait_for(blocks, "generating images", unit="block")
    return Photos(tuple(rows), tuple(blocks))


def mixture_sizes(real: int | None, fraction: float, photos: int, generated: int | None) -> tuple[int, int]:
    """How many real photos and generated images make a training set in which `fraction` is real.

    real, generated: as asked for, or None; photos: real ones there are. With both left open all photos are used, and
    generated only is as large as the real set would be. Raises ConfigurationError where both are given for a
    fraction that they don't make.
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


def _take(block: Block, rows: np.ndarray) -> Block:
    return block[0][rows], block[1][rows]


def _generate(one: NamedGenerator, label: str, number: int, count: int, seed: int, first: int) -> Block:
    return one.sample(label, count, seed, first).numpy(), np.full(count, number, np.int64)
