"""What a report card judges: sets of images by label, each from a source that tasks anywhere can draw from.

A candidate is one column of the report's table: a generator, several that share the labels between them, or one of the
baselines that show what the numbers mean: real photos, an untrained generator, and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError
from raygan.evaluation.settings import EvaluateSettings
from raygan.models.gan import Generator
from raygan.models.latents import seeded
from raygan.sampling.generators import ALL, NamedGenerator, check_drawn, check_labels, check_size, find_generators


class Source(Protocol):
    """Where images come from."""

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        """uint8 images (count, 3, S, S) of a label, those with the numbers `first`, `first` + 1, ..."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A column of the table. sources: one for each label. made_of: the generators behind it, for the record."""

    name: str
    sources: Mapping[str, Source]
    made_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealPhotos:
    """Photos (n, 3, S, S) of each label that are not among those compared with."""

    photos: Mapping[str, Tensor]

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        return self.photos[label][first : first + count]


@dataclass(frozen=True)
class Noise:
    """Pixels drawn uniformly, each for itself. size: side in px."""

    size: int

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        random = seeded(seed, first, f"noise {label}")
        return torch.randint(0, 256, (count, 3, self.size, self.size), dtype=torch.uint8, generator=random)


def find_candidates(settings: EvaluateSettings, data: DataSet) -> list[Candidate]:
    """The candidates that the settings name; without --model the champions of all labels as one.

    Raises RayganError if there is none, or if a generator's labels or size don't match the shards.
    """
    classes = data.manifest.classes
    strange = [label for label in settings.label if label not in classes]
    if strange:
        raise ConfigurationError(f"--label: {data.address} has no label {strange[0]!r}; it has {', '.join(classes)}")
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


def baselines(
    labels: Sequence[str], held_out: Mapping[str, Tensor], like: NamedGenerator | None, size: int, seed: int
) -> list[Candidate]:
    """Real photos, an untrained generator shaped like the first one judged, and noise."""
    found = [Candidate("real photos", dict.fromkeys(labels, RealPhotos(held_out)))]
    if like is not None:
        untrained = untrained_generator(like, labels, seed)
        found.append(Candidate("untrained", dict.fromkeys(labels, untrained)))
    found.append(Candidate("noise", dict.fromkeys(labels, Noise(size))))
    return found


def untrained_generator(like: NamedGenerator, labels: Sequence[str], seed: int) -> NamedGenerator:
    """A generator of the same shape with fresh weights, as a training begins with it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # It draws alike whatever it is asked for, so that it needs to know none of the labels.
        generator = Generator(replace(like.generator.settings, labels=()))
    return NamedGenerator("untrained", generator.eval(), tuple(labels), {})


def _alone(one: NamedGenerator, wanted: Sequence[str]) -> Candidate:
    labels = [label for label in one.labels if not wanted or label in wanted]
    if not labels:
        raise ConfigurationError(f"--label: {one.name} draws {', '.join(one.labels)}, not {', '.join(wanted)}")
    return Candidate(one.name, dict.fromkeys(labels, one), (one.name,))
