"""When things happen in a training: its length and cadences in batches, and its learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygan.training.settings import LengthOptions, StepOptions

#: How often each happens in a run, unless the settings say otherwise.
_LOGS, _SNAPSHOTS, _CHECKPOINTS, _QUALITIES = 100, 20, 20, 10

#: Images to train on, at least, for each sample of a quality measurement, unless the settings say otherwise:
#: measuring on a sample takes as long as training on one or two.
_TRAINED_PER_SAMPLE = 4


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and the batches between two events of each kind, all of which also happen at the end.

    Snapshots and checkpoints fall on logs. Quality measurements fall on checkpoints, which they measure.

    Attributes:
        total: batches in the run.
        log: batches between two logs.
        snapshot: batches between two sample grids.
        checkpoint: batches between two checkpoints.
        quality: batches between two quality measurements; 0 for none.
        minutes: the run ends after so many minutes, to a few seconds.
    """

    total: int
    log: int
    snapshot: int
    checkpoint: int
    quality: int
    minutes: float = math.inf

    @classmethod
    def of(cls, settings: LengthOptions, photos: int, batch_size: int) -> Schedule:
        """The schedule of a run on `photos` photos, which must fill a batch."""
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


def learning_rate_share(options: StepOptions, images: int, total_kimg: float) -> float:
    """The share of both learning rates in force: a linear warm-up, and a linear decay at the end.

    Args:
        options: how long the warm-up and the decay are.
        images: real images seen so far.
        total_kimg: the run's length in thousands of images; 0 if unknown, which leaves the decay out.

    Returns:
        A share in [0, 1].
    """
    share = 1.0
    if options.warmup_kimg:
        share = min(1.0, (images + options.batch_size) / (options.warmup_kimg * 1000))
    if options.decay and total_kimg:
        left = 1 - images / (total_kimg * 1000)
        share *= min(1.0, max(0.0, left / options.decay))
    return share
