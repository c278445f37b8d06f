"""When things happen in a training, in batches: settings say it in epochs, thousands of images and minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raygan.config import LengthOptions

#: Parts of the run between two of each, where the settings leave it open.
_LOGS, _SNAPSHOTS, _CHECKPOINTS, _QUALITIES = 100, 20, 20, 10


@dataclass(frozen=True)
class Schedule:
    """Batches in all, and between two of each thing; everything also happens at the end.

    Snapshots, checkpoints and measurements of quality fall on logs, and measurements on checkpoints, which
    they judge. quality: 0 is never. minutes: the run ends at the first log after so many, if it is given.
    """

    total: int
    log: int
    snapshot: int
    checkpoint: int
    quality: int
    minutes: float = math.inf

    @classmethod
    def of(cls, settings: LengthOptions, photos: int, batch_size: int) -> Schedule:
        """The schedule of a run on so many photos, at least one batch of them."""
        thousand = 1000 / batch_size
        total = max(1, round(settings.kimg * thousand)) if settings.kimg else settings.epochs * (photos // batch_size)

        def every(kimg: float | None, parts: int, of: int) -> int:
            batches = total / parts if kimg is None else kimg * thousand
            return of * max(1, round(batches / of))

        log = every(settings.log_every, _LOGS, 1)
        checkpoint = every(settings.checkpoint_every, _CHECKPOINTS, log)
        quality = 0 if settings.quality_every == 0 else every(settings.quality_every, _QUALITIES, checkpoint)
        return cls(
            total=total,
            log=log,
            snapshot=every(settings.snapshot_every, _SNAPSHOTS, log),
            checkpoint=checkpoint,
            quality=quality,
            minutes=settings.minutes or math.inf,
        )
