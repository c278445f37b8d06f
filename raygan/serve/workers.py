"""Where pictures are encoded and decoded, beside the gateway's event loop, and who may use it when.

1. `Slots` admits work: a few pieces at once, further ones in turn by client, so that one client's many requests don't
   delay another's only one; what would wait too long gets 503 at once.
2. `PictureWorkers` encodes in threads: trusted work of known size.
3. `Decoders` decodes uploads in processes of their own (`decoder`), which a time limit ends: no file, whatever a
   stranger put into it, holds more than one process for more than a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np

from raygan.serve import decoder
from raygan.serve.calls import Busy
from raygan.serve.messages import Pixels
from raygan.serve.metrics import Metrics
from raygan.serve.problems import Problem

T = TypeVar("T")

#: Seconds for a decoding process to start.
_START_SECONDS = 30.0

#: Variables that a decoding process gets. It handles what strangers send, so it gets no token and no key.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")


class Slots:
    """Admission to a few workers; belongs to one event loop.

    Args:
        name: the stage in metrics.
        slots: pieces of work at once.
        metrics: where counts and times go.
        limit: maximum number of pieces that wait.
        share: maximum number of one client's pieces that wait.
    """

    def __init__(self, name: str, slots: int, metrics: Metrics, *, limit: int = 128, share: int = 32):
        self._name, self._free, self._metrics = name, slots, metrics
        self._limit, self._share = limit, share
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator[None]:
        """Hold a slot. Raises Busy if too much is waiting already."""
        asked = time.perf_counter()
        await self._take(client)
        began = time.perf_counter()
        self._metrics.observe("stage_seconds", began - asked, stage=self._name, part="waiting")
        try:
            yield
        finally:
            self._metrics.observe("stage_seconds", time.perf_counter() - began, stage=self._name, part="computing")
            self._give_back()

    async def _take(self, client: str) -> None:
        if self._free:
            self._free -= 1
            return
        own = self._waiting.get(client, deque())
        if len(own) >= self._share or sum(map(len, self._waiting.values())) >= self._limit:
            self._metrics.count("rejected", stage=self._name)
            raise Busy(2)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, own).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            client, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            if not turn.done():  # otherwise its request was cancelled
                turn.set_result(None)
                return
        self._free += 1


class PictureWorkers:
    """Threads that encode.

    Args:
        name: the stage in metrics.
        threads: number of threads.
        metrics: where counts and times go.
        limit: maximum number of pieces of work that wait.
    """

    def __init__(self, name: str, threads: int, metrics: Metrics, *, limit: int = 128):
        self._pool = ThreadPoolExecutor(threads, name)
        self._slots = Slots(name, threads, metrics, limit=limit, share=max(1, limit // 4))
        self._name, self._metrics = name, metrics

    async def run(self, client: str, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call `work` in a thread. Raises Busy if too much is waiting."""
        async with self._slots.taken(client):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: work(*arguments, **options))

    def run_here(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work` at once, for work shorter than the switch to a thread."""
        began = time.perf_counter()
        result = work(*arguments)
        self._metrics.observe("stage_seconds", time.perf_counter() - began, stage=self._name, part="computing")
        return result


class Decoders:
    """Processes that decode uploads. They start with the first upload.

    Args:
        processes: number of processes.
        metrics: where counts and times go.
        max_megapixels: limit on an upload's pixels.
        seconds: time limit per upload, also an attribute.
    """

    def __init__(self, processes: int, metrics: Metrics, *, max_megapixels: float, seconds: float = 5.0):
        self._slots = Slots("decode", processes, metrics)
        self._max_megapixels, self.seconds = max_megapixels, seconds
        self._idle: list[asyncio.subprocess.Process] = []

    async def decode(self, client: str, data: bytes, size: int, field: str) -> Pixels:
        """An upload's central square.

        Args:
            client: whose upload it is.
            data: the file.
            size: side of the returned image, in px.
            field: the upload's name in problems.
        Returns:
            uint8 (size, size, 3).
        Raises:
            Problem: 413 for an upload that takes too many pixels or too long, 422 for an unreadable one.
            Busy: too many uploads are waiting.
        """
        async with self._slots.taken(client):
            process = await self._process()
            answered = False
            try:
                answer = await asyncio.wait_for(self._ask(process, data, size), self.seconds)
            except TimeoutError:
                raise Problem(413, f"takes more than {self.seconds:g} s to decode", field=field) from None
            except (asyncio.IncompleteReadError, OSError):
                raise Problem(422, "damaged: the decoder failed", field=field) from None
            else:
                self._idle.append(process)
                answered = True
            finally:  # also if the request was cancelled: its decoding is of no use
                if not answered:
                    await _end(process)
        status, body = answer
        if status != decoder.DECODED:
            raise Problem(status, body.decode(), field=field)
        return np.frombuffer(body, np.uint8).reshape(size, size, 3)

    async def _process(self) -> asyncio.subprocess.Process:
        """An idle process that lives, or a new one."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await _start()

    async def _ask(self, process: asyncio.subprocess.Process, data: bytes, size: int) -> tuple[int, bytes]:
        assert process.stdin is not None  # noqa: S101 (for mypy)
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(decoder.REQUEST.pack(len(data), size, self._max_megapixels) + data)
        await process.stdin.drain()
        status, length = decoder.ANSWER.unpack(await process.stdout.readexactly(decoder.ANSWER.size))
        return status, await process.stdout.readexactly(length)

    async def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            await _end(self._idle.pop())


async def _start() -> asyncio.subprocess.Process:
    """A process that has announced itself. Raises Busy if it doesn't start in time."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "raygan.serve.decoder",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None  # noqa: S101 (for mypy)
    try:
        await asyncio.wait_for(process.stdout.readexactly(len(decoder.READY)), _START_SECONDS)
    except BaseException as error:  # also if the request was cancelled meanwhile
        await _end(process)
        if isinstance(error, TimeoutError | asyncio.IncompleteReadError):
            raise Busy(5) from None
        raise
    return process


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
