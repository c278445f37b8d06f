"""What workers, Ray Train's controller and judges tell the driver while a training runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raygan.errors import RayganError
from raygan.runtime import storage

#: The reported number by which Ray Train keeps checkpoints, higher is better. (It holds a checkpoint without the number
#: for the best one where lower is better, and would keep those that were never judged.)
SCORE = "negative_kid"


@dataclass(frozen=True)
class Tick:
    """Progress."""

    batches: int


@dataclass(frozen=True)
class Picture:
    """A picture under the run's folder. trouble: why it isn't there, if it could not be written."""

    path: str
    trouble: str | None = None


def written(folder: str, path: str, content: bytes) -> Picture:
    """A picture, which is written under the run's folder; that it can't be is no reason to end a training."""
    try:
        storage.write_bytes(storage.join(folder, path), content)
    except RayganError as error:
        return Picture(path, str(error))
    return Picture(path)


@dataclass(frozen=True)
class Report:
    """Metrics of the images since the last report; its checkpoint, if it has one, is safe in storage."""

    metrics: dict[str, Any]


@dataclass(frozen=True)
class Quality:
    """A checkpoint's metrics, at so many images seen; `kid` is among them under its full name."""

    metrics: dict[str, float]
    images: int
    kid: float
    checkpoint: str


@dataclass(frozen=True)
class Notice:
    """A node of the training is about to be taken away, and what was trained so far is being saved."""

    kimg: float


@dataclass(frozen=True)
class Collapse:
    """The training has died and stopped itself."""

    reason: str
    kimg: float
