"""When things happen in a training, in batches: settings say it in epochs, thousands of images and minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raygan.training.settings import LengthOptions

#: Parts of the run between two of each, where the settings leave it open.
_LOGS, _SNAPSHOTS, _CHECKPOINTS, _QUALITIES = 100, 20, 20, 10

#: Images trained, at least, for each sample that is judged, where the settings leave it open: judging a sample takes
#: as long as training on one or two.
_TRAINED_PER_SAMPLE = 4


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

        def every(kimg: float | None, parts: int, least: float = 0.0) -> float:
            return max(total / parts, least) if kimg is None else kimg * thousand

        def multiple(batches: float, of: int) -> int:
            return of * max(1, round(batches / of))

        log = multiple(every(settings.log_every, _LOGS), 1)
        checkpoint = multiple(every(settings.checkpoint_every, _CHECKPOINTS), log)
        rarely = _TRAINED_PER_SAMPLE * settings.quality_samples / batch_size
        judged = every(settings.quality_every, _QUALITIES, rarely)
        return cls(
            total=total,
            log=log,
            snapshot=multiple(every(settings.snapshot_every, _SNAPSHOTS), log),
            checkpoint=checkpoint,
            quality=multiple(judged, checkpoint) if judged else 0,
            minutes=settings.minutes or math.inf,
        )
