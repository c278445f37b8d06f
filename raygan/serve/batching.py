"""Batching: the gateway's queue in front of a deployment, where requests become batches and failures become retries.

1. `Batcher.run` queues a request's images. As soon as a call is allowed, everything waiting goes into it, up to
   `max_call` images: a hop between processes costs as much as computing an image, and a batch shares the hop. The
   next batch gathers while calls are in flight, so nobody waits for a batch to fill and a lone request leaves at once.
2. Each replica has one call in flight. A second one, ready when the first finishes, starts only if a whole batch
   (`batch` images, or `_ENOUGH_FOR_A_CALL`) is waiting: fewer images are cheaper in the next call than in their own.
3. If a replica dies, its call is repeated on any replica (`raygan.serve.retries`). If a call fails for another reason,
   each request is retried alone, so one request can't spoil its neighbors.
4. With more than `limit` images waiting, `Busy` tells the client when to come back and the queue stops growing.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import Metrics
from raygan.serve.retries import ReplicaDied, repeated

I = TypeVar("I")  # noqa: E741 (a request's item)
A = TypeVar("A")

#: Images that always justify a second call. A batch of 32 is too much to wait for: 32 clients that each want one image
#: rarely queue that many, and replicas ran idle.
_ENOUGH_FOR_A_CALL = 16


class Busy(Exception):  # noqa: N818 - a state of the service, not a fault of the program
    """The service is full.

    Attributes:
        seconds: when to try again.
    """

    def __init__(self, seconds: int):
        super().__init__(f"try again in {seconds} s")
        self.seconds = seconds


class Caller(Protocol[I, A]):
    """Calls a deployment's replicas."""

    async def call(self, model: ModelVersion, items: list[I]) -> tuple[list[A], float]:
        """An answer per item, and the seconds spent computing. Raises ReplicaDied, Busy, or the replica's error."""

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have every replica load a version; returns its description."""


@dataclass(eq=False)
class _Waiting(Generic[I, A]):
    model: ModelVersion
    item: I
    images: int
    answer: asyncio.Future[A]
    since: float
    taken: bool = False


class Batcher(Generic[I, A]):
    """A queue in front of a deployment; belongs to one event loop.

    Args:
        name: the deployment in metrics.
        caller: reaches its replicas.
        images_of: the number of images in an item.
        metrics: where counts and times go.
        batch: images that a replica's thread computes at once.
        max_call: maximum number of images per call.
        limit: maximum number of images waiting.
        seconds: time limit of a call.

    Attributes:
        replicas: running replicas as far as known; the gateway keeps it current.
    """

    def __init__(
        self,
        name: str,
        caller: Caller[I, A],
        images_of: Callable[[I], int],
        metrics: Metrics,
        *,
        batch: int,
        max_call: int,
        limit: int,
        seconds: float,
    ):
        self.name, self._caller, self._images_of, self._metrics = name, caller, images_of, metrics
        self._batch, self._max_call, self._limit, self._seconds = batch, max_call, limit, seconds
        self._queue: deque[_Waiting[I, A]] = deque()
        self._waiting_images = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._rate = 0.0  # images per second, a moving average
        self.replicas = 1

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have a version loaded; returns its description. Raises what loading raised."""
        return await self._caller.prepare(model)

    async def run(self, model: ModelVersion, item: I) -> A:
        """The answer to one request's item. Raises Busy, or what the replica raised."""
        images = self._images_of(item)
        if self._waiting_images + images > self._limit:
            self._metrics.count("rejected", stage=self.name)
            raise Busy(self._seconds_to_wait())
        waiting: _Waiting[I, A] = _Waiting(
            model, item, images, asyncio.get_running_loop().create_future(), time.perf_counter()
        )
        self._queue.append(waiting)
        self._waiting_images += images
        self._start()
        if not waiting.taken:
            self._observe_queue()
        try:
            return await waiting.answer
        finally:
            if not waiting.taken:  # cancelled
                self._queue.remove(waiting)
                self._waiting_images -= images
                self._observe_queue()

    def _observe_queue(self) -> None:
        self._metrics.observe("waiting_images", self._waiting_images, stage=self.name)

    def _start(self) -> None:
        while self._queue and self._has_room():
            batch = self._take()
            if batch:
                # In a fresh context: Serve would take a call in a request's context for part of that request, and
                # cancel it when that request's client disconnects.
                task = contextvars.Context().run(asyncio.ensure_future, self._answer(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._ended)

    def _has_room(self) -> bool:
        calls = 2 if self._waiting_images >= min(self._batch, _ENOUGH_FOR_A_CALL) else 1
        return len(self._in_flight) < calls * max(1, self.replicas)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._start()

    def _take(self) -> list[_Waiting[I, A]]:
        """The oldest requests of one version, up to `max_call` images, without the cancelled ones."""
        batch: list[_Waiting[I, A]] = []
        images = 0
        while self._queue:
            waiting = self._queue[0]
            if batch and (waiting.model != batch[0].model or images + waiting.images > self._max_call):
                break
            self._queue.popleft()
            waiting.taken = True
            self._waiting_images -= waiting.images
            if not waiting.answer.done():
                batch.append(waiting)
                images += waiting.images
        self._observe_queue()
        return batch

    async def _answer(self, batch: list[_Waiting[I, A]]) -> None:
        began = time.perf_counter()
        images = sum(waiting.images for waiting in batch)
        try:
            answers, computing = await self._call(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        except Exception as error:
            await self._failed(batch, error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        seconds = time.perf_counter() - began
        self._rate = 0.9 * self._rate + 0.1 * images / seconds if self._rate else images / seconds
        self._metrics.observe("batch_images", images, stage=self.name)
        self._metrics.observe("stage_seconds", began - batch[0].since, stage=self.name, part="waiting")
        self._metrics.observe("stage_seconds", seconds - computing, stage=self.name, part="way")
        self._metrics.observe("stage_seconds", computing, stage=self.name, part="computing")

    async def _call(self, batch: Sequence[_Waiting[I, A]]) -> tuple[list[A], float]:
        """Call until a replica answers or nobody is waiting any more."""
        items = [waiting.item for waiting in batch]
        return await repeated(
            lambda: self._caller.call(batch[0].model, items),
            seconds=self._seconds,
            wanted=lambda: not all(waiting.answer.done() for waiting in batch),
            on_retry=lambda: self._metrics.count("retries", stage=self.name),
        )

    async def _failed(self, batch: list[_Waiting[I, A]], error: Exception) -> None:
        if len(batch) > 1 and not isinstance(error, Busy | ReplicaDied):
            for waiting in batch:
                await self._answer([waiting])
            return
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)

    def _seconds_to_wait(self) -> int:
        return min(30, max(1, math.ceil(self._waiting_images / self._rate))) if self._rate else 1
