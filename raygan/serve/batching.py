"""Stages: the gateway's side of a deployment, where requests become batches and failures become retries.

The mental model:

1. `Stage.run` queues a request's images. As soon as a call may be made, everything that is waiting goes in one call
   (up to `most` images): a hop between processes costs as much as computing an image, and here a batch shares it.
   While calls are under way the next batch gathers, so nobody waits for a batch to fill, and a lone request goes
   at once.
2. A call for each replica is under way, and a second one, that is there when the first has finished, only if a whole
   batch (`batch` images, or `_WORTH_A_CALL`) is waiting: fewer cost less in the next call than in one of their own.
3. Drawing and judging are idempotent. A call whose replica died is made again, by whichever replica there is, until
   the request's own time is up; a call that fails for another reason is made again for each request alone, so that
   one request can't spoil its neighbours'.
4. More images waiting than `limit` is `Busy`: the client is told to come back, the queue doesn't grow.
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
from raygan.serve.metrics import Meters

I = TypeVar("I")  # noqa: E741 (an item that a request asks for)
A = TypeVar("A")

#: Seconds before a call is made again: doubled each time, up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


#: Images that are always worth a second call. A batch of 32 is too many to wait for: with 32 clients that ask for one
#: image each they are seldom waiting, and replicas ran dry.
_WORTH_A_CALL = 16


class Busy(Exception):  # noqa: N818 - a state of the service, not a fault of the program
    """Too much is waiting. seconds: after which to try again."""

    def __init__(self, seconds: int):
        super().__init__(f"try again in {seconds} s")
        self.seconds = seconds


class Died(Exception):  # noqa: N818 - as above
    """The replica of a call ended, or can't be reached; the call may be made again."""


class Caller(Protocol[I, A]):
    """The way to a deployment's replicas."""

    async def call(self, model: ModelVersion, items: list[I]) -> tuple[list[A], float]:
        """An answer for each item, and the seconds of computing. Raises Died, Busy, or what the replica raised."""

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have every replica load a version; its description."""


@dataclass(eq=False)
class _Waiting(Generic[I, A]):
    model: ModelVersion
    item: I
    images: int
    answer: asyncio.Future[A]
    since: float
    taken: bool = False


class Stage(Generic[I, A]):
    """A queue in front of a deployment; belongs to one event loop.

    images_of: the number of images that an item stands for. batch: images that a replica's thread computes at once.
    most: images in a call. limit: images that may wait. seconds: that a call may take.
    """

    def __init__(
        self,
        name: str,
        caller: Caller[I, A],
        images_of: Callable[[I], int],
        meters: Meters,
        *,
        batch: int,
        most: int,
        limit: int,
        seconds: float,
    ):
        self.name, self._caller, self._images_of, self._meters = name, caller, images_of, meters
        self._batch, self._most, self._limit, self._seconds = batch, most, limit, seconds
        self._waiting: deque[_Waiting[I, A]] = deque()
        self._waiting_images = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._rate = 0.0
        #: Replicas that run, as far as is known; the gateway keeps it up to date.
        self.replicas = 1

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        """Have a version loaded; its description. Raises what loading raised."""
        return await self._caller.prepare(model)

    async def run(self, model: ModelVersion, item: I) -> A:
        """The answer to one request's item. Raises Busy, or what the replica raised."""
        images = self._images_of(item)
        if self._waiting_images + images > self._limit:
            self._meters.count("rejected", stage=self.name)
            raise Busy(self._seconds_to_wait())
        waiting: _Waiting[I, A] = _Waiting(
            model, item, images, asyncio.get_running_loop().create_future(), time.perf_counter()
        )
        self._waiting.append(waiting)
        self._waiting_images += images
        self._start()
        if not waiting.taken:
            self._tell_waiting()
        try:
            return await waiting.answer
        finally:
            if not waiting.taken:  # given up
                self._waiting.remove(waiting)
                self._waiting_images -= images
                self._tell_waiting()

    def _tell_waiting(self) -> None:
        self._meters.observe("waiting_images", self._waiting_images, stage=self.name)

    def _start(self) -> None:
        while self._waiting and self._has_room():
            batch = self._take()
            if batch:
                # In a context of its own: in a request's, Serve takes the call for a part of that request, and ends it
                # when that one's client goes away.
                task = contextvars.Context().run(asyncio.ensure_future, self._answer(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    def _has_room(self) -> bool:
        calls = 2 if self._waiting_images >= min(self._batch, _WORTH_A_CALL) else 1
        return len(self._under_way) < calls * max(1, self.replicas)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    def _take(self) -> list[_Waiting[I, A]]:
        """The oldest requests of one version, up to `most` images, without those that were given up."""
        batch: list[_Waiting[I, A]] = []
        images = 0
        while self._waiting:
            waiting = self._waiting[0]
            if batch and (waiting.model != batch[0].model or images + waiting.images > self._most):
                break
            self._waiting.popleft()
            waiting.taken = True
            self._waiting_images -= waiting.images
            if not waiting.answer.done():
                batch.append(waiting)
                images += waiting.images
        self._tell_waiting()
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
        self._meters.observe("batch_images", images, stage=self.name)
        self._meters.observe("stage_seconds", began - batch[0].since, stage=self.name, part="waiting")
        self._meters.observe("stage_seconds", seconds - computing, stage=self.name, part="way")
        self._meters.observe("stage_seconds", computing, stage=self.name, part="computing")

    async def _call(self, batch: Sequence[_Waiting[I, A]]) -> tuple[list[A], float]:
        """Call until a replica answers or nobody waits any more."""
        pause = _FIRST_PAUSE
        while True:
            try:
                call = self._caller.call(batch[0].model, [waiting.item for waiting in batch])
                return await asyncio.wait_for(call, self._seconds)
            except asyncio.TimeoutError:
                raise Died("no answer in time") from None  # nor has anybody time left to wait for another
            except Died:
                if all(waiting.answer.done() for waiting in batch):
                    raise
                self._meters.count("retries", stage=self.name)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _failed(self, batch: list[_Waiting[I, A]], error: Exception) -> None:
        if len(batch) > 1 and not isinstance(error, Busy | Died):
            for waiting in batch:
                await self._answer([waiting])
            return
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)

    def _seconds_to_wait(self) -> int:
        return min(30, max(1, math.ceil(self._waiting_images / self._rate))) if self._rate else 1
