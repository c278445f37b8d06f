"""Messages between the gateway and its replicas: model versions, requests, and the arrays they return.

Images are uint8 arrays (n, S, S, 3), C-contiguous: the channels-last layout that networks compute in and that
encoders read. Plain data; nothing here imports torch or MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raygan.serve.logs import ORIGIN, Origin

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class Champions:
    """The versions that the registry's serving alias points at.

    Attributes:
        generators: by label; several labels may share a model.
        classifier: None if none is registered.
        proven: versions served since deployment; they stand in for champions that fail to load.
    """

    generators: dict[str, ModelVersion] = field(default_factory=dict)
    classifier: ModelVersion | None = None
    proven: Champions | None = None

    @property
    def models(self) -> set[ModelVersion]:
        """All versions, without the proven ones."""
        return {model for model in (*self.generators.values(), self.classifier) if model}


@dataclass(frozen=True)
class SampleRequest:
    """Images that one request wants from a generator, one per seed.

    Attributes:
        label: one of a conditional generator's labels.
        seeds: one per image.
        truncation: scales the latents, in (0, 1].
        end_seeds: if given, image i lies on the great circle from seeds[i] to end_seeds[i] ...
        fractions: ... at this fraction of the way, in [0, 1].
        moves: how far to move along the generator's strongest directions, the strongest first.
        judge: the classifier that looks at the images, too; None for images alone.
        origin: the client's request, for the log.
    """

    label: str
    seeds: tuple[int, ...]
    truncation: float = 1.0
    end_seeds: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    moves: tuple[float, ...] = ()
    judge: ModelVersion | None = None
    origin: Origin = field(default_factory=ORIGIN.get, compare=False)

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class ClassifyRequest:
    """Images that one request wants classified.

    Attributes:
        images: uint8 (n, S, S, 3).
        alone: never batched with other requests' images.
        origin: the client's request, for the log.
    """

    images: Pixels
    alone: bool = False
    origin: Origin = field(default_factory=ORIGIN.get, compare=False)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Predictions:
    """The classifier's probabilities (n, labels), and the labels of its columns."""

    labels: tuple[str, ...]
    probabilities: Probabilities

    def of(self, label: str) -> Probabilities:
        """Each image's probability of one label (n,)."""
        column: Probabilities = self.probabilities[:, self.labels.index(label)]
        return column

    def rows(self, chosen: Sequence[int]) -> Predictions:
        """The predictions for some of the images."""
        return Predictions(self.labels, self.probabilities[list(chosen)])

    def plain(self) -> list[dict[str, float]]:
        """Each image's probability of each label, to 4 decimal places."""
        rows = self.probabilities.tolist()
        return [{label: round(value, 4) for label, value in zip(self.labels, row, strict=True)} for row in rows]


@dataclass(frozen=True)
class Drawn:
    """A generator's answer.

    Attributes:
        images: uint8 (n, S, S, 3).
        predictions: of the request's judge, one row per image; None without a judge.
    """

    images: Pixels
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Samples:
    """A request's images with their origin.

    Attributes:
        label: the requested label.
        images: uint8 (n, S, S, 3).
        seeds: one per image.
        drawn: images drawn to find these.
        model: the generator's version.
        classifier: the classifier's version; None if none is registered.
        predictions: None if no classifier is registered.
        complete: whether the same request always gets these images; false if time ran out.
    """

    label: str
    images: Pixels
    seeds: list[int]
    drawn: int
    model: ModelVersion
    classifier: ModelVersion | None
    predictions: Predictions | None
    complete: bool = True

    @property
    def accepted(self) -> int:
        return len(self.images)
