"""What the parts of the graph say to each other: model versions, what to draw, and their answers' shapes.

Images travel between stages as uint8 arrays (n, S, S, 3), C-contiguous: the layout in which networks compute
(channels last), and in which pictures are encoded. Plain data; nothing here imports torch or MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
    """What the registry's alias points at.

    generators: by label; several labels may share a model. proven: versions that have been served since the graph was
    deployed, which stand in for champions that can't be loaded.
    """

    generators: dict[str, ModelVersion] = field(default_factory=dict)
    classifier: ModelVersion | None = None
    proven: Champions | None = None


@dataclass(frozen=True)
class Draws:
    """Images that one request asks of a generator, one for each seed.

    label: which of a conditional generator's labels. truncation: latents are scaled by it, in (0, 1].
    ends, shares: if given, image i lies on the great circle from seeds[i] to ends[i], shares[i] of the way.
    """

    label: str
    seeds: tuple[int, ...]
    truncation: float = 1.0
    ends: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Judge:
    """Images (n, S, S, 3) that one request asks the classifier about. alone: not in a batch with others'."""

    images: Pixels
    alone: bool = False

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Verdicts:
    """Probabilities (n, labels) of images, and the labels they belong to."""

    labels: tuple[str, ...]
    probabilities: Probabilities

    def of(self, label: str) -> Probabilities:
        """Each image's probability of one label (n,)."""
        column: Probabilities = self.probabilities[:, self.labels.index(label)]
        return column

    def rows(self, chosen: Sequence[int]) -> Verdicts:
        """The verdicts on some of the images."""
        return Verdicts(self.labels, self.probabilities[list(chosen)])
