"""A verdict on one candidate, and the real photos it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from raygan.evaluation.collect import Look


@dataclass(frozen=True)
class Reals:
    """The real photos of one label, or of all: pixels uint8 (n, 3, S, S) and features (n, d) by network."""

    pixels: Tensor
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """A candidate's numbers for one label, or for "all", and what the page shows beside them.

    metrics: by name. closest: index of the nearest real photo of each sample, in the first network. confidence: the
    classifier's probability of the label (n,), or None where it doesn't know it.
    """

    candidate: str
    label: str
    samples: int
    metrics: dict[str, float]
    closest: Tensor
    look: Look
    confidence: Tensor | None
