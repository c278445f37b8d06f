"""Calls to the models: retries, limits, and what the metrics say."""

from __future__ import annotations

import asyncio

import pytest

from raygan.serve.calls import Busy, Calls, ReplicaDied
from raygan.serve.headers import walk_headers
from raygan.serve.messages import ModelVersion
from tests.serve.local import RecordingMetrics


class Answering:
    """A replica that answers, after the deaths or the wait that a test wants."""

    def __init__(self, *, deaths=0):
        self.deaths, self.attempts, self.gate = deaths, 0, asyncio.Event()
        self.gate.set()

    async def __call__(self):
        self.attempts += 1
        await self.gate.wait()
        if self.attempts <= self.deaths:
            raise ReplicaDied("killed")
        return "answer", 0.0


def make_calls(metrics, **limits):
    return Calls("test", metrics, **{"limit": 100, "seconds": 30.0, **limits})


async def test_a_call_whose_replica_died_is_repeated():
    replica, metrics = Answering(deaths=3), RecordingMetrics()
    assert await make_calls(metrics).call(4, replica) == "answer"
    assert (replica.attempts, metrics.counts["retries", "test"]) == (4, 3)


@pytest.mark.parametrize("deaths", [0, 1000])
async def test_a_call_without_an_answer_is_given_up(deaths):
    replica = Answering(deaths=deaths)
    if not deaths:
        replica.gate.clear()
    with pytest.raises(ReplicaDied):
        await make_calls(RecordingMetrics(), seconds=0.2).call(4, replica)


async def test_too_many_images_under_way_are_refused_and_cancelled_ones_make_room():
    replica, metrics = Answering(), RecordingMetrics()
    replica.gate.clear()
    calls = make_calls(metrics, limit=3)
    asked = [asyncio.ensure_future(calls.call(1, replica)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(Busy):
        await calls.call(1, replica)
    assert metrics.counts["rejected", "test"] == 1
    for task in asked[1:]:
        task.cancel()
    await asyncio.sleep(0.01)
    assert metrics.values["waiting_images", "test"][-1] == 1
    again = asyncio.ensure_future(calls.call(2, replica))
    await asyncio.sleep(0.01)
    replica.gate.set()
    assert await asyncio.gather(asked[0], again) == ["answer", "answer"]
    assert metrics.values["waiting_images", "test"][-1] == 0
    assert replica.attempts == 4


def test_names_in_any_script_fit_headers():
    names = [f"raygan-generator-{label}" for label in ("cat", "猫", "狗", "c\u00e4t")]
    assert [walk_headers(ModelVersion(name, "1"), 0, 1)["X-Raygan-Model"].isascii() for name in names] == [True] * 4
