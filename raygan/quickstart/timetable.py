"""Where a quickstart's minutes go: the training gets what the stages before and after it leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Minutes that are set aside for the start and the end of the training, the report card and the service. On two cores,
#: they take this long for some thousand photos.
AFTER_MINUTES = 2.0

#: Minimum share of the minutes in which the GAN trains, however long the photos take.
_LEAST_SHARE = 0.3


class Timetable:
    """Times the stages of a quickstart.

    Attributes:
        taken: minutes of each stage so far.
    """

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic):
        """Begin.

        Args:
            minutes: that everything may take; None if that is not limited.
            now: a clock, in seconds.
        """
        self.minutes, self._now = minutes, now
        self.taken: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = self._now()
        yield
        self.taken[name] = (self._now() - began) / 60

    @property
    def training_minutes(self) -> float | None:
        """Minutes that the GAN may train from now on."""
        if self.minutes is None:
            return None
        left = self.minutes - sum(self.taken.values()) - AFTER_MINUTES
        return round(max(left, _LEAST_SHARE * self.minutes), 2)

    def plan(self) -> str:
        """What is going to happen, before the first stage."""
        return (
            f"{self.minutes:g} minutes in all: the photos and GoogLeNet (if there are two labels) first, then the GAN "
            f"with the rest, and {AFTER_MINUTES:g} minutes for the report card; the same command resumes"
        )

    def outlook(self) -> str:
        """What is left to do, before the training."""
        before, training = sum(self.taken.values()), self.training_minutes or 0.0
        return (
            f"{self} so far; the GAN trains for {training:.1f} minutes, and all is ready about "
            f"{before + training + AFTER_MINUTES:.1f} minutes after the start"
        )

    def __str__(self) -> str:
        """The stages so far, as in ``1.5 minutes (photos 1.0, GoogLeNet 0.5)``."""
        stages = ", ".join(f"{name} {minutes:.1f}" for name, minutes in self.taken.items())
        return f"{sum(self.taken.values()):.1f} minutes ({stages})"
