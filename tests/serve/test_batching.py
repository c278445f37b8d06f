"""The gateway's queues: batches, retries, limits."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from raygan.serve.batching import Batcher, Busy
from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import NoMetrics
from raygan.serve.retries import ReplicaDied
from tests.serve.local import CAT, RecordingMetrics


class Answering:
    """A caller that answers a number with ten times that number, after the deaths or the wait that a test wants."""

    def __init__(self, *, deaths=0, poison=None):
        self.deaths, self.poison, self.calls, self.gate = deaths, poison, [], asyncio.Event()
        self.gate.set()

    async def prepare(self, model):
        return {}

    async def call(self, model, items):
        self.calls.append((model, list(items)))
        await self.gate.wait()
        if self.deaths:
            self.deaths -= 1
            raise ReplicaDied("killed")
        if self.poison in items:
            raise ValueError("poison")
        return [item * 10 for item in items], 0.0


def make_batcher(caller, **limits):
    return Batcher(
        "test",
        caller,
        lambda item: 1,
        NoMetrics(),
        **{"batch": 1, "max_call": 8, "limit": 100, "seconds": 30.0, **limits},
    )


async def test_waiting_requests_share_a_call():
    caller = Answering()
    caller.gate.clear()
    queue = make_batcher(caller, batch=3)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(12)]
    await asyncio.sleep(0.01)
    # One replica gets a second call as soon as a batch is waiting.
    assert [items for _, items in caller.calls] == [[0], [1, 2, 3]]
    caller.gate.set()
    assert await asyncio.gather(*asked) == [10 * i for i in range(12)]
    assert [len(items) for _, items in caller.calls] == [1, 3, 8]


async def test_versions_are_not_mixed_in_a_call():
    caller = Answering()
    caller.gate.clear()
    queue = make_batcher(caller)
    newer = ModelVersion(CAT.name, "2")
    asked = [asyncio.ensure_future(queue.run(model, 1)) for model in (CAT, CAT, CAT, CAT, newer, newer)]
    await asyncio.sleep(0.01)
    caller.gate.set()
    await asyncio.gather(*asked)
    assert [(model.version, len(items)) for model, items in caller.calls] == [("1", 1), ("1", 1), ("1", 2), ("2", 2)]


async def test_a_call_whose_replica_died_is_repeated():
    caller = Answering(deaths=3)
    assert await make_batcher(caller).run(CAT, 4) == 40
    assert len(caller.calls) == 4


async def test_a_hanging_call_is_abandoned():
    caller = Answering()
    caller.gate.clear()
    with pytest.raises(ReplicaDied):
        await make_batcher(caller, seconds=0.05).run(CAT, 4)
    assert len(caller.calls) == 1


async def test_a_cancelled_request_leaves_its_neighbors_their_call():
    """Serve takes a call's request from the context."""
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    seen = []

    class Looking(Answering):
        async def call(self, model, items):
            seen.append(whose.get())
            return await super().call(model, items)

    whose.set("a request's")
    assert await make_batcher(Looking()).run(CAT, 1) == 10
    assert seen == ["nobody's"]


async def test_one_request_cannot_spoil_its_neighbors():
    caller = Answering(poison=5)
    caller.gate.clear()
    queue = make_batcher(caller)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(8)]
    await asyncio.sleep(0.01)
    caller.gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer for i, answer in enumerate(answers) if i != 5] == [0, 10, 20, 30, 40, 60, 70]
    assert isinstance(answers[5], ValueError)


async def test_a_full_queue_rejects_requests_and_cancelled_ones_are_not_computed():
    caller = Answering()
    caller.gate.clear()
    queue = make_batcher(caller, limit=3)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(5)]
    await asyncio.sleep(0.01)
    with pytest.raises(Busy):
        await queue.run(CAT, 9)
    for task in asked[3:]:
        task.cancel()
    await asyncio.sleep(0.01)
    caller.gate.set()
    await asyncio.gather(*asked[:3])
    assert sorted(i for _, items in caller.calls for i in items) == [0, 1, 2]


async def test_the_queue_metric_is_exact_and_leaves_out_cancelled_requests():
    caller, metrics = Answering(), RecordingMetrics()
    caller.gate.clear()
    queue = Batcher("test", caller, lambda item: 1, metrics, batch=1, max_call=8, limit=3, seconds=30.0)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(5)]
    await asyncio.sleep(0.01)
    assert metrics.values["waiting_images", "test"][-1] == 3
    for task in asked[2:]:
        task.cancel()
    await asyncio.sleep(0.01)
    assert metrics.values["waiting_images", "test"][-1] == 0
    again = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(3)]  # there is room for them
    await asyncio.sleep(0.01)
    caller.gate.set()
    assert await asyncio.gather(*asked[:2], *again) == [0, 10, 0, 10, 20]
    assert metrics.values["waiting_images", "test"][-1] == 0
