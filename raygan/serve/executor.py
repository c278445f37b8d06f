"""Lanes: a replica's computing threads, which take batches from whatever is waiting.

The mental model:

1. `Lanes.run` queues the rows of a call. Whenever a lane is free it takes what is waiting, up to `batch` rows and
   across calls, so batches are as large as the load makes them and nobody waits for one to fill. A lone call of 16
   rows keeps two lanes busy with 8 each.
2. A lane is one thread that computes with one core: N lanes use N cores without the barriers that one network on
   N cores has, and with one thread the order of every sum is fixed.
3. What comes together in a batch depends on timing, so rows must not depend on their company. Where that matters
   to the last bit, `steady` tries it on this very machine and network, and where it doesn't hold (other kernels, a
   GPU), every batch is padded to the same shape, which fixes the kernels too.

torch only; `run` belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: A network as lanes see it: tensors with rows in their first dimension to one such tensor.
Compute = Callable[..., Tensor]


#: Rows that are not shared among lanes: one of four costs half as much as one alone.
_LEAST_SHARE = 4


@dataclass(eq=False)
class _Call:
    """Rows that were asked for together. alone: not to be joined with others. taken: rows begun with."""

    inputs: tuple[Tensor, ...]
    answer: asyncio.Future[Tensor]
    alone: bool = False
    taken: int = 0
    parts: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    @property
    def shapes(self) -> list[torch.Size]:
        """Shapes of a row of each input."""
        return [column.shape[1:] for column in self.inputs]

    def joins(self, other: _Call) -> bool:
        """Whether rows of both may be computed together."""
        return not (self.alone or other.alone) and self.shapes == other.shapes

    def deliver(self, start: int, part: Tensor) -> None:
        self.parts[start] = part
        if sum(map(len, self.parts.values())) == self.rows and not self.answer.done():
            self.answer.set_result(torch.cat([self.parts[start] for start in sorted(self.parts)]))


class Lanes:
    """Threads around one network.

    compute: called in the threads with at most `batch` rows. threads: of them. padded: bring every batch to `batch`
    rows by repeating its last one.
    """

    def __init__(self, compute: Compute, *, threads: int, batch: int, padded: bool):
        self._compute, self._batch, self._padded = compute, batch, padded
        self._pool = ThreadPoolExecutor(threads, "lane", initializer=torch.set_num_threads, initargs=(1,))
        self._idle = threads
        self._calls: deque[_Call] = deque()
        self._threads, self._closing, self._ended = threads, False, False

    async def run(self, *inputs: Tensor, alone: bool = False) -> Tensor:
        """The network's rows for the inputs' rows, at least one. Raises what it raises; when closed, RuntimeError."""
        if self._ended:
            raise RuntimeError("these lanes have ended")
        call = _Call(inputs, asyncio.get_running_loop().create_future(), alone)
        self._calls.append(call)
        # Soon, not now: what came in one message shall be one batch.
        asyncio.get_running_loop().call_soon(self._start, self._threads)
        return await call.answer

    @property
    def waiting(self) -> int:
        """Rows that no lane has begun with."""
        return sum(call.rows - call.taken for call in self._calls)

    def _start(self, lanes: int) -> None:
        """Have idle lanes begin with what is waiting. lanes: among how many it is shared evenly."""
        while self._idle and self._calls:
            share = -(-self.waiting // min(self._idle, lanes))
            rows = min(self._batch, max(_LEAST_SHARE, share))
            if pieces := self._take(rows):
                self._submit(pieces)

    def _take(self, rows: int) -> list[tuple[_Call, int, int]]:
        """Pieces (call, start, stop) of the oldest calls, at most `rows` in all, with inputs of one shape."""
        pieces: list[tuple[_Call, int, int]] = []
        while rows and self._calls:
            call = self._calls[0]
            if call.answer.done():  # given up, or failed in another lane
                self._calls.popleft()
                continue
            if pieces and not call.joins(pieces[0][0]):
                break
            stop = min(call.taken + rows, call.rows)
            pieces.append((call, call.taken, stop))
            rows -= stop - call.taken
            call.taken = stop
            if stop == call.rows:
                self._calls.popleft()
        return pieces

    def _submit(self, pieces: list[tuple[_Call, int, int]]) -> None:
        cut = [[column[start:stop] for column in call.inputs] for call, start, stop in pieces]
        inputs = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*cut, strict=True)]
        self._idle -= 1
        loop = asyncio.get_running_loop()
        future = self._pool.submit(_compute_rows, self._compute, inputs, self._batch if self._padded else 0)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, pieces, done))

    def _finish(self, pieces: list[tuple[_Call, int, int]], done: Future[Tensor]) -> None:
        self._idle += 1
        error = done.exception()
        if error is None:
            rows = done.result().split([stop - start for _, start, stop in pieces])
            for (call, start, _), part in zip(pieces, rows, strict=True):
                call.deliver(start, part)
        else:
            for call, _, _ in pieces:
                if not call.answer.done():
                    call.answer.set_exception(error)
        # What has waited for a lane is not alone: two messages may be under way (`Stage`). Half of the lanes for each
        # makes larger batches, which cost less.
        self._start(max(1, self._threads // 2))
        self._end()

    def close(self) -> None:
        """Let the threads end when they have finished what was asked of them."""
        self._closing = True
        self._end()

    def _end(self) -> None:
        if self._closing and not self._calls and self._idle == self._threads:
            self._ended = True
            self._pool.shutdown(wait=False)


def _compute_rows(compute: Compute, inputs: Sequence[Tensor], padded_to: int) -> Tensor:
    rows = len(inputs[0])
    if padded_to > rows:
        inputs = [torch.cat([column, column[-1:].expand(padded_to - rows, *column.shape[1:])]) for column in inputs]
    return compute(*inputs)[:rows]


def steady(compute: Compute, inputs: Sequence[Tensor], batch: int) -> bool:
    """Whether each row's answer is the same, to the last bit, in any company; found by trying.

    inputs: at least `batch` rows. Computes with one thread, as lanes do, and leaves torch set to that.
    """
    torch.set_num_threads(1)
    inputs = [column[:batch] for column in inputs]
    whole = compute(*inputs)
    for size in range(1, batch):
        for start in sorted({*range(0, batch - size + 1, size), batch - size}):
            part = compute(*(column[start : start + size] for column in inputs))
            if not torch.equal(part, whole[start : start + size]):
                return False
    return True
