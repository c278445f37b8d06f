"""Calls from the gateway to the models: who may call, what may fail, and what is done about it.

1. A call costs two processes as much as computing an image, and an image in a small batch costs more than in a large
   one, so requests that come close together share a call. A request leaves at once if a replica has nothing to do, and
   otherwise with the next call. That starts when it carries as many requests as those under way, when it is full, or
   when too few are under way. No more than a full call's images wait here: replicas see the load, and tell Serve, which
   scales by it (`scaling`). In the replicas, requests become batches (`executor`).
2. If a replica dies, the requests of its call are repeated on any replica: sampling and classifying are idempotent.
3. With more than `limit` images under way, `Busy` tells the client when to come back, and no more calls are made.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import Metrics

I = TypeVar("I", bound=Sized)  # noqa: E741 (a request's images)
A = TypeVar("A")
T = TypeVar("T")
In = TypeVar("In", bound=Sized, contravariant=True)
Out = TypeVar("Out", covariant=True)

#: Calls under way per replica, beside full ones: one computes, one is next.
_CALLS_PER_REPLICA = 2

#: Images with which a call is full: it leaves in any case.
_FULL = 16

#: Replicas that are asked for a version that they can't load, before its request fails.
_LOAD_TRIES = 3

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


class NotLoaded(ReplicaDied):
    """The replica can't load the call's version now; another may have it."""


class Stage(Protocol[In, Out]):
    """What replicas do with images: draw or classify."""

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have every replica load a version; returns its description. Raises what loading raised."""

    async def run(self, model: ModelVersion, request: In) -> Out:
        """The answer to a request. Raises Busy, ReplicaDied if no replica answers in time, or the replica's error."""


@dataclass(eq=False)
class _Waiting(Generic[I, A]):
    model: ModelVersion
    request: I
    answer: asyncio.Future[tuple[A, float]]


#: Has replicas answer requests for one version: for each, the answer and the seconds spent computing, or the error.
Ask = Callable[[ModelVersion, list[I]], Awaitable[list[tuple[A, float] | Exception]]]


class Calls(Generic[I, A]):
    """Makes, counts, limits and repeats the calls of one stage; belongs to one event loop.

    Args:
        name: the stage in metrics.
        metrics: where counts and times go.
        ask: calls a replica.
        limit: maximum number of images under way.
        seconds: time limit of a request.

    Attributes:
        replicas: running replicas, as far as known.
    """

    def __init__(self, name: str, metrics: Metrics, ask: Ask[I, A], *, limit: int, seconds: float):
        self._name, self._metrics, self._ask, self._limit, self._seconds = name, metrics, ask, limit, seconds
        self._waiting: deque[_Waiting[I, A]] = deque()
        self._calls: dict[asyncio.Task[None], int] = {}  # with their numbers of requests
        self._images = self._waiting_images = 0
        self._usual = 0.0  # seconds of a request, a moving average
        self.replicas = 1

    async def run(self, model: ModelVersion, request: I) -> A:
        """The answer to a request.

        Raises:
            Busy: too many images are under way.
            ReplicaDied: no replica answered in time.
        """
        images = len(request)
        if self._images + images > self._limit:
            self._metrics.count("rejected", stage=self._name)
            raise Busy(min(30, max(1, math.ceil(self._usual))))
        began = time.perf_counter()
        answer, computing = await repeated(
            lambda: self._join(model, request),
            self._seconds,
            lambda: self._metrics.count("retries", stage=self._name),
        )
        seconds = time.perf_counter() - began
        self._usual = 0.9 * self._usual + 0.1 * seconds
        self._metrics.observe("stage_seconds", seconds - computing, stage=self._name, part="way")
        self._metrics.observe("stage_seconds", computing, stage=self._name, part="computing")
        return answer

    def observe(self) -> None:
        """Tell the metrics how many images are under way. Now and then: a gauge costs as much as a dozen counts."""
        self._metrics.observe("waiting_images", self._images, stage=self._name)

    async def _join(self, model: ModelVersion, request: I) -> tuple[A, float]:
        waiting = _Waiting[I, A](model, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._images += len(request)
        self._waiting_images += len(request)
        self._start()
        return await waiting.answer

    def _start(self) -> None:
        while self._waiting and self._may_leave():
            if together := self._take():
                call = apart(self._call(together))
                self._calls[call] = len(together)
                call.add_done_callback(self._ended)

    def _may_leave(self) -> bool:
        calls, replicas = len(self._calls), max(1, self.replicas)
        if calls < replicas or self._waiting_images >= _FULL:
            return True
        # By requests, not by images: one image needn't wait for as many as a large request has.
        return calls < _CALLS_PER_REPLICA * replicas and len(self._waiting) * calls >= sum(self._calls.values())

    def _ended(self, call: asyncio.Task[None]) -> None:
        del self._calls[call]
        self._start()

    def _take(self) -> list[_Waiting[I, A]]:
        """The requests for the version that has waited longest, until they make a full call; drops cancelled ones."""
        together: list[_Waiting[I, A]] = []
        rest: deque[_Waiting[I, A]] = deque()
        images = 0
        for waiting in self._waiting:
            size = len(waiting.request)
            if waiting.answer.done():  # its client has left
                self._images -= size
            elif images < _FULL and (not together or waiting.model == together[0].model):
                together.append(waiting)
                images += size
            else:
                rest.append(waiting)
        self._waiting, self._waiting_images = rest, sum(len(waiting.request) for waiting in rest)
        return together

    async def _call(self, together: list[_Waiting[I, A]]) -> None:
        images = sum(len(waiting.request) for waiting in together)
        self._metrics.observe("batch_images", images, stage=self._name)
        answers: Sequence[tuple[A, float] | Exception]
        try:
            async with asyncio.timeout(self._seconds):  # a replica that hangs must not keep others' calls from starting
                answers = await self._ask(together[0].model, [waiting.request for waiting in together])
        except TimeoutError:
            answers = [ReplicaDied("no answer in time")] * len(together)
        except Exception as error:
            answers = [error] * len(together)
        self._images -= images
        for waiting, answer in zip(together, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)


def apart(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a call that Serve doesn't cancel with the request that it came from, which Serve finds in the context."""
    return contextvars.Context().run(asyncio.ensure_future, call)


async def repeated(attempt: Callable[[], Awaitable[T]], seconds: float, on_retry: Callable[[], None]) -> T:
    """The answer of `attempt`, repeated while it raises ReplicaDied, but NotLoaded only a few times.

    Args:
        attempt: starts one.
        seconds: time limit of all attempts together.
        on_retry: called before each retry.

    Raises:
        ReplicaDied: time is up.
        NotLoaded: no replica that was asked could load the version.
    """
    pause, refused = _FIRST_PAUSE, 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await attempt()
                except ReplicaDied as error:
                    refused += isinstance(error, NotLoaded)
                    if refused == _LOAD_TRIES:
                        raise
                    on_retry()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MAX_PAUSE)
    except TimeoutError:
        raise ReplicaDied("no answer in time") from None
