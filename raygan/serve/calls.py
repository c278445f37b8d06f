"""Calls from the gateway to the models: who may call, what may fail, and what is done about it.

1. Every request is a call of its own, so Serve sees what waits and what is busy, and scales by it. Requests become
   batches in the replicas (`executor`).
2. If a replica dies, its call is repeated on any replica: sampling and classifying are idempotent.
3. With more than `limit` images in calls, `Busy` tells the client when to come back, and no more calls are made.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sized
from typing import Any, Protocol, TypeVar

from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import Metrics

I = TypeVar("I", bound=Sized, contravariant=True)  # noqa: E741 (a request's images)
A = TypeVar("A", covariant=True)
T = TypeVar("T")

#: Seconds before a retry, doubled each time up to the maximum.
_FIRST_PAUSE, _MAX_PAUSE = 0.05, 1.0


class Busy(Exception):  # noqa: N818 - a state of the service, not a fault of the program
    """The service is full.

    Attributes:
        seconds: when to try again.
    """

    def __init__(self, seconds: int):
        super().__init__(f"try again in {seconds} s")
        self.seconds = seconds


class ReplicaDied(Exception):  # noqa: N818 - a state of the service, not a fault of the program
    """A call's replica died or is unreachable; the call may be repeated."""


class Stage(Protocol[I, A]):
    """What replicas do with images: draw or classify."""

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have every replica load a version; returns its description. Raises what loading raised."""

    async def run(self, model: ModelVersion, request: I) -> A:
        """The answer to a request. Raises Busy, ReplicaDied if no replica answers in time, or the replica's error."""


class Calls:
    """Counts, limits and repeats the calls of one stage; belongs to one event loop.

    Args:
        name: the stage in metrics.
        metrics: where counts and times go.
        limit: maximum number of images in calls.
        seconds: time limit of a call.
    """

    def __init__(self, name: str, metrics: Metrics, *, limit: int, seconds: float):
        self._name, self._metrics, self._limit, self._seconds = name, metrics, limit, seconds
        self._images = 0
        self._usual = 0.0  # seconds of a call, a moving average

    async def call(self, images: int, attempt: Callable[[], Awaitable[tuple[T, float]]]) -> T:
        """The answer of `attempt`, which gives it with the seconds spent computing.

        Raises:
            Busy: too many images are in calls.
            ReplicaDied: no replica answered in time.
        """
        if self._images + images > self._limit:
            self._metrics.count("rejected", stage=self._name)
            raise Busy(min(30, max(1, math.ceil(self._usual))))
        began = time.perf_counter()
        self._count(images)
        try:
            answer, computing = await repeated(
                attempt, self._seconds, lambda: self._metrics.count("retries", stage=self._name)
            )
        finally:
            self._count(-images)
        seconds = time.perf_counter() - began
        self._usual = 0.9 * self._usual + 0.1 * seconds
        self._metrics.observe("batch_images", images, stage=self._name)
        self._metrics.observe("stage_seconds", seconds - computing, stage=self._name, part="way")
        self._metrics.observe("stage_seconds", computing, stage=self._name, part="computing")
        return answer

    def _count(self, images: int) -> None:
        self._images += images
        self._metrics.observe("waiting_images", self._images, stage=self._name)


async def repeated(attempt: Callable[[], Awaitable[T]], seconds: float, on_retry: Callable[[], None]) -> T:
    """The answer of `attempt`, repeated while it raises ReplicaDied.

    Args:
        attempt: starts one.
        seconds: time limit of all attempts together.
        on_retry: called before each retry.

    Raises:
        ReplicaDied: time is up.
    """
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await attempt()
                except ReplicaDied:
                    on_retry()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MAX_PAUSE)
    except TimeoutError:
        raise ReplicaDied("no answer in time") from None
