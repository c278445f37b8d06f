"""A replica's compute threads, which take batches from whatever is waiting.

1. `Executor.run` queues the rows of a call. A free thread takes what is waiting, up to `batch` rows and across calls,
   so batches grow with the load and nobody waits for one to fill. A lone call of 16 rows keeps two threads busy with 8
   each. Rows of several calls stay together up to 16: where calls come together, cores are better spent on larger
   batches, and other threads soon get the next rows.
2. Each thread computes on one core. N threads use N cores without the barriers of one network on N cores, and on a
   single core the order of every sum is fixed. All networks of a replica share its threads and take turns: with threads
   of its own, each network would split its rows into small batches for cores that others are using.
3. What shares a batch depends on timing, so a row's result must not depend on the rest of its batch. Where every bit
   counts, `is_batch_invariant` tries it on this machine and this network. Where that fails (other kernels, a GPU),
   every batch is padded to one shape, which fixes the kernels as well.

torch only; `run` belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raygan.models.drawing import Compute, compute_padded

#: Rows that are not split between threads, of a lone call and of several: in a batch of four, a row costs half as much
#: as alone, and in one of 16 a quarter.
_MIN_SHARE, _MIN_JOINED = 4, 16


@dataclass(eq=False)
class _Call:
    """The rows of one `run`.

    Attributes:
        alone: never batched with other calls' rows.
        taken: rows that a thread has started on.
        parts: finished rows by their start.
    """

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
        """The shape of one row of each input."""
        return [column.shape[1:] for column in self.inputs]

    def joins(self, other: _Call) -> bool:
        """Whether rows of both may share a batch."""
        return not (self.alone or other.alone) and self.shapes == other.shapes

    def deliver(self, start: int, part: Tensor) -> None:
        self.parts[start] = part
        if sum(map(len, self.parts.values())) == self.rows and not self.answer.done():
            self.answer.set_result(torch.cat([self.parts[start] for start in sorted(self.parts)]))


class Threads:
    """Threads that compute for several networks, each on one core; belongs to one event loop.

    Args:
        count: number of threads.
    """

    def __init__(self, count: int):
        self.idle = count
        self.pool = ThreadPoolExecutor(count, "compute", initializer=torch.set_num_threads, initargs=(1,))
        self._turns: deque[Executor] = deque()

    def ask_for(self, executor: Executor) -> None:
        """Give an executor turns until nothing waits in it."""
        if executor not in self._turns:
            self._turns.append(executor)
            self.start_soon()

    def start_soon(self) -> None:
        """Start idle threads once everything that has come at the same time is waiting: it belongs in one batch."""
        asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        while self.idle and self._turns:
            executor = self._turns.popleft()
            executor.start(max(1, self.idle - len(self._turns)))
            if executor.waiting:
                self._turns.append(executor)


class Executor:
    """A network computed in threads.

    Args:
        compute: called in the threads with at most `batch` rows.
        threads: compute it, and other networks.
        batch: maximum number of rows per batch.
        padded: fill every batch up to `batch` rows by repeating its last one.
    """

    def __init__(self, compute: Compute, threads: Threads, *, batch: int, padded: bool):
        self._compute, self._threads, self._batch, self.padded = compute, threads, batch, padded
        self._calls: deque[_Call] = deque()

    async def run(self, *inputs: Tensor, alone: bool = False) -> Tensor:
        """The network's output for the inputs' rows. Raises whatever the network raises.

        Args:
            inputs: tensors with the same number of rows, at least one.
            alone: never batch these rows with other calls'.
        """
        call = _Call(inputs, asyncio.get_running_loop().create_future(), alone)
        self._calls.append(call)
        self._threads.ask_for(self)
        return await call.answer

    @property
    def waiting(self) -> int:
        """Rows that no thread has started on."""
        return sum(call.rows - call.taken for call in self._calls)

    def start(self, threads: int) -> None:
        """Start a thread on its share of the waiting rows. threads: how many of them may share."""
        least = _MIN_SHARE if len(self._calls) == 1 else _MIN_JOINED
        rows = min(self._batch, max(least, -(-self.waiting // threads)))
        if pieces := self._take(rows):
            self._submit(pieces)

    def _take(self, rows: int) -> list[tuple[_Call, int, int]]:
        """Pieces (call, start, stop) of the oldest calls: at most `rows` rows, all of one shape."""
        pieces: list[tuple[_Call, int, int]] = []
        while rows and self._calls:
            call = self._calls[0]
            if call.answer.done():  # cancelled, or failed in another thread
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
        self._threads.idle -= 1
        loop = asyncio.get_running_loop()
        future = self._threads.pool.submit(compute_padded, self._compute, inputs, self._batch if self.padded else 0)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, pieces, done))

    def _finish(self, pieces: list[tuple[_Call, int, int]], done: Future[Tensor]) -> None:
        self._threads.idle += 1
        error = done.exception()
        if error is None:
            rows = done.result().split([stop - start for _, start, stop in pieces])
            for (call, start, _), part in zip(pieces, rows, strict=True):
                call.deliver(start, part)
        else:
            for call, _, _ in pieces:
                if not call.answer.done():
                    call.answer.set_exception(error)
        self._threads.start_soon()


def is_batch_invariant(compute: Compute, inputs: Sequence[Tensor], batch: int) -> bool:
    """Whether each row's result is bit-identical whatever shares its batch, found by trying.

    Sets torch to one thread, as the executor's threads do, and leaves it so.

    Args:
        compute: the network.
        inputs: tensors with at least `batch` rows.
        batch: largest batch tried.
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
