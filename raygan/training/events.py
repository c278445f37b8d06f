"""What workers, Ray Train's controller and the monitor tell the driver while a training runs.

The queue's process imports this module, so it imports neither Ray Train nor torch, which take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tick:
    """Progress: real images seen so far."""

    images: int


@dataclass(frozen=True)
class Picture:
    """A picture was written under the run's folder, or could not be.

    Attributes:
        path: within the run's folder.
        trouble: why it could not be written.
    """

    path: str
    trouble: str | None = None


@dataclass(frozen=True)
class Report:
    """Metrics of the images since the last report. Its checkpoint, if it has one, is safe in storage.

    Attributes:
        metrics: by name.
        measured: whether its checkpoint is going to be measured.
    """

    metrics: dict[str, Any]
    measured: bool = False


@dataclass(frozen=True)
class Quality:
    """A checkpoint's measurement.

    Attributes:
        metrics: by full name, KID among them.
        images: real images that the training had seen.
        kid: the checkpoint's KID.
        checkpoint: the checkpoint's address.
    """

    metrics: dict[str, float]
    images: int
    kid: float
    checkpoint: str


@dataclass(frozen=True)
class Unmeasured:
    """A measurement failed.

    Attributes:
        images: real images that the training had seen.
        reason: in one line.
    """

    images: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """One of the training's nodes is about to be taken away, and what was trained so far is being saved."""

    kimg: float


@dataclass(frozen=True)
class Collapse:
    """The training has died and stopped itself."""

    reason: str
    kimg: float
