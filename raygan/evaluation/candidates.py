"""What a report card compares: candidates, each with a source of images for every label it draws.

A candidate is a column of the report's table: a generator, several generators that share the labels among them, or a
baseline that puts the numbers in perspective: real photos, an untrained generator, or noise. Ray tasks on any node
draw from a source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, some
from raygan.evaluation.settings import EvaluateSettings
from raygan.models.gan import build_generator
from raygan.models.latents import seeded
from raygan.sampling.generators import ALL, NamedGenerator, check_drawn, check_labels, check_size, find_generators

#: Names of the baselines, which the table never shows as the best.
BASELINES = REAL_PHOTOS, UNTRAINED, NOISE = "real photos", "untrained", "noise"


class Source(Protocol):
    """Where images come from."""

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        """uint8 images (count, 3, S, S) of a label: those numbered `first`, `first` + 1, ..."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A column of the table.

    Attributes:
        name: heading of the column.
        sources: by label.
        made_of: names of the generators behind it, for the record.
    """

    name: str
    sources: Mapping[str, Source]
    made_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealPhotos:
    """Photos, uint8 (n, 3, S, S) by label, kept out of the comparison."""

    photos: Mapping[str, Tensor]

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        return self.photos[label][first : first + count]


@dataclass(frozen=True)
class Noise:
    """Independent, uniformly drawn pixels; `size` is the side in px."""

    size: int

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        random = seeded(seed, first, f"noise {label}")
        return torch.randint(0, 256, (count, 3, self.size, self.size), dtype=torch.uint8, generator=random)


def find_candidates(settings: EvaluateSettings, data: DataSet) -> list[Candidate]:
    """The candidates that the settings name; without --model the champions of all labels as one candidate.

    Raises:
        RayganError: there is no candidate, or a generator's labels or size don't match the shards.
    """
    classes = data.manifest.classes
    for label in settings.label:
        data.check_label(label)
    found = find_generators(settings, settings.model, settings.label or classes)
    check_labels(found, data)
    check_size(found, data)
    if settings.model:
        return [_alone(one, settings.label) for one in found]
    if not found and not settings.label:
        found = find_generators(settings, [], [ALL])
    if settings.label or not found:
        check_drawn(found, settings.label or classes)
    sources = {label: one for one in found for label in one.labels}
    return [Candidate("champion", sources, tuple(dict.fromkeys(one.name for one in found)))]


def with_baselines(
    candidates: Sequence[Candidate], held_out: Mapping[str, Tensor], size: int, seed: int
) -> list[Candidate]:
    """The candidates between real photos on the left and an untrained generator and noise on the right.

    Args:
        candidates: the first generator among them gives the untrained one its shape.
        held_out: photos of each label that are kept out of the comparison, uint8 (n, 3, S, S).
        size: side of the noise in px.
        seed: of the untrained generator's weights.

    Raises:
        ConfigurationError: a candidate has the name of a baseline.
    """
    labels = list(held_out)
    found = [Candidate(REAL_PHOTOS, dict.fromkeys(labels, RealPhotos(held_out))), *candidates]
    generators = [source for one in candidates for source in one.sources.values() if isinstance(source, NamedGenerator)]
    if generators:
        found.append(Candidate(UNTRAINED, dict.fromkeys(labels, untrained_generator(generators[0], labels, seed))))
    found.append(Candidate(NOISE, dict.fromkeys(labels, Noise(size))))
    for name, times in Counter(candidate.name for candidate in found).items():
        if times > 1:
            raise ConfigurationError(f"--model: a folder can't be called {name!r} beside the baseline: rename it")
    return found


def untrained_generator(like: NamedGenerator, labels: Sequence[str], seed: int) -> NamedGenerator:
    """A generator of the same shape with the fresh weights that a training starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Without labels of its own it takes any label, and draws the same for each.
        generator = build_generator(replace(like.generator.settings, labels=()))
    return NamedGenerator(UNTRAINED, generator.eval(), tuple(labels), {})


def _alone(one: NamedGenerator, wanted: Sequence[str]) -> Candidate:
    labels = [label for label in one.labels if not wanted or label in wanted]
    if not labels:
        raise ConfigurationError(f"--label: {one.name} draws {some(one.labels)}, not {some(wanted)}")
    return Candidate(one.name, dict.fromkeys(labels, one), (one.name,))
