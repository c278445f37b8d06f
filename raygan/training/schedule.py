"""When things happen in a training: its length and cadences, and its learning rates.

Progress is counted in images seen, so that a run resumed with another batch size goes on where it was. A run that is
limited by wall-clock time (`--minutes`) divides its minutes, too, and spends at most about a twentieth on events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygan.training.settings import LengthOptions, StepOptions

#: How often each happens in a run, unless the settings say otherwise.
_LOGS, _SNAPSHOTS, _CHECKPOINTS, _QUALITIES = 100, 20, 20, 10

#: Maximum share of a run's minutes for events of each kind, where minutes end the run and no interval is set.
_SHARES = {"log": 0.01, "snapshot": 0.01, "checkpoint": 0.01, "quality": 0.02}

KINDS = tuple(_SHARES)

#: Minutes before the first quality measurement of such a run and between two: nobody knows yet what the first takes.
_LEAST_MINUTES = 2.0

#: Images to train on, at least, for each sample of a quality measurement, unless the settings say otherwise:
#: measuring on a sample takes as long as training on one or two.
_TRAINED_PER_SAMPLE = 4


@dataclass(frozen=True)
class Every:
    """An interval: over when enough images have been seen, or enough time has passed.

    Attributes:
        images: between two events.
        minutes: between two events.
        least: images between two events for which the time has come.
        share: maximum share of the run's time that the events may take; infinity for no limit.
        at_most: minutes between two events, whatever they take.
    """

    images: int
    minutes: float = math.inf
    least: int = 0
    share: float = math.inf
    at_most: float = math.inf


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and the intervals between events of each kind, all of which also happen at the end.

    Snapshots and checkpoints come with a log. Quality measurements come with a checkpoint, which they measure.

    Attributes:
        total: images in the run.
        log: interval between logs.
        snapshot: interval between sample grids.
        checkpoint: interval between checkpoints.
        quality: interval between quality measurements; None for none.
        minutes: the run ends after this time, give or take a few seconds.
    """

    total: int
    log: Every
    snapshot: Every
    checkpoint: Every
    quality: Every | None
    minutes: float = math.inf

    @classmethod
    def of(cls, settings: LengthOptions, photos: int, batch_size: int) -> Schedule:
        """The schedule of a run on `photos` photos, which must fill a batch. All its images are whole batches."""
        epochs = settings.epochs * (photos // batch_size)
        total = batch_size * (max(1, round(settings.kimg * 1000 / batch_size)) if settings.kimg else epochs)
        minutes = settings.minutes or math.inf

        def every(kind: str, parts: int, whole: int, *, least: int = 0, at_most: float = math.inf) -> Every:
            """The given interval, or one of so many parts of the run, in `whole` images."""
            kimg: float | None = getattr(settings, f"{kind}_every")
            images = max(total / parts, least) if kimg is None else kimg * 1000
            images = whole * max(1, round(images / whole))
            if kimg is not None or minutes == math.inf:
                return Every(images, at_most, least)
            return Every(images, min(minutes / parts, at_most), least, _SHARES[kind], at_most)

        log = every("log", _LOGS, batch_size)
        checkpoint = every("checkpoint", _CHECKPOINTS, log.images, at_most=settings.checkpoint_minutes)
        rarely = _TRAINED_PER_SAMPLE * settings.quality_samples
        return cls(
            total=total,
            log=log,
            snapshot=every("snapshot", _SNAPSHOTS, log.images),
            checkpoint=checkpoint,
            quality=every("quality", _QUALITIES, checkpoint.images, least=rarely)
            if settings.quality_every != 0
            else None,
            minutes=minutes,
        )


@dataclass(frozen=True)
class Due:
    """What has to happen after a batch."""

    log: bool
    snapshot: bool
    checkpoint: bool
    quality: bool
    last: bool


class Agenda:
    """Tells what is due. Ranks that ask at the same batches with the same numbers hear the same."""

    def __init__(self, schedule: Schedule, images: int, minutes: float):
        """Begin, or resume.

        Args:
            schedule: of the run.
            images: seen so far.
            minutes: trained so far.
        """
        self.schedule, self._images = schedule, images
        self._since = dict.fromkeys(KINDS, (images, minutes))
        self._costs = dict.fromkeys(KINDS, 0.0)
        self._measurable = True

    def learn(self, costs: Mapping[str, float], *, measurable: bool) -> None:
        """Note the costs that decide when the next events of a run with a time limit are due.

        Args:
            costs: minutes that the last event of each kind took.
            measurable: whether quality could be measured now, without waiting for the reference.
        """
        self._costs |= costs
        self._measurable = measurable

    def due(self, images: int, minutes: float) -> Due:
        """What is due now.

        Args:
            images: seen so far.
            minutes: trained so far, as of the last look at the clock.
        """
        schedule = self.schedule
        last = images >= schedule.total or minutes >= schedule.minutes
        quality = schedule.quality is not None and (last or self._over("quality", schedule.quality, images, minutes))
        checkpoint = quality or last or self._over("checkpoint", schedule.checkpoint, images, minutes)
        snapshot = last or self._over("snapshot", schedule.snapshot, images, minutes)
        log = snapshot or checkpoint or self._over("log", schedule.log, images, minutes)
        due = Due(log, snapshot, checkpoint, quality, last)
        self._since |= {kind: (images, minutes) for kind in self._since if getattr(due, kind)}
        self._images = images
        return due

    def _over(self, kind: str, every: Every, images: int, minutes: float) -> bool:
        """Whether the interval of that kind is over."""
        since, began = self._since[kind]
        if every.share < math.inf:
            if minutes - began < min(self._costs[kind] / every.share, every.at_most):
                return False
            if kind == "quality" and (minutes - began < _LEAST_MINUTES or not self._measurable):
                return False
        timed = minutes - began >= every.minutes and images - since >= every.least
        return timed or images // every.images > self._images // every.images


def rates_after(changes: Sequence[str], images: int) -> tuple[float, float] | None:
    """Learning rates of the generator and the critic by the latest change; None before the first one.

    Args:
        changes: ``KIMG:GENERATOR:CRITIC`` each.
        images: real images seen so far.

    Raises:
        ValueError: a change is not written like that, or a rate is not above 0.
    """
    latest: tuple[float, float, float] | None = None
    for change in changes:
        try:
            kimg, generator, critic = (float(part) for part in change.split(":"))
        except ValueError:
            raise ValueError(f"{change!r} is not KIMG:GENERATOR:CRITIC, such as 40:0.0005:0.0002") from None
        if not (kimg >= 0 and 0 < generator <= 1 and 0 < critic <= 1):
            raise ValueError(f"{change!r}: KIMG is at least 0, rates are above 0 and at most 1")
        if images >= kimg * 1000 and (latest is None or kimg >= latest[0]):
            latest = kimg, generator, critic
    return latest[1:] if latest else None


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
