"""Calls to the models: retries, limits, and what the metrics say."""

from __future__ import annotations

import asyncio

import pytest

from raygan.serve.calls import Busy, Calls, NotLoaded, ReplicaDied
from raygan.serve.headers import walk_headers
from raygan.serve.messages import ModelVersion
from tests.serve.local import RecordingMetrics

CAT, DOG = ModelVersion("cat", "1"), ModelVersion("dog", "1")


class Answering:
    """A replica that answers each request with its own text, after the deaths or the wait that a test wants."""

    def __init__(self, *, deaths=0, open=True, death=ReplicaDied):
        self.deaths, self.death, self.asked, self.gate = deaths, death, [], asyncio.Event()
        if open:
            self.gate.set()

    async def __call__(self, model, requests):
        self.asked.append((model, requests))
        await self.gate.wait()
        if len(self.asked) <= self.deaths:
            raise self.death("killed")
        return [ValueError(each) if "bad" in each else (each.upper(), 0.0) for each in requests]


def make_calls(replica, metrics=None, **limits):
    return Calls("test", metrics or RecordingMetrics(), replica, **{"limit": 100, "seconds": 30.0, **limits})


async def started(*runs):
    """The tasks of coroutines that have got as far as they can. A request's length is its number of images."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    await asyncio.sleep(0.01)
    return tasks


async def test_a_call_whose_replica_died_is_repeated():
    replica, metrics = Answering(deaths=3), RecordingMetrics()
    assert await make_calls(replica, metrics).run(CAT, "four") == "FOUR"
    assert (len(replica.asked), metrics.counts["retries", "test"]) == (4, 3)


@pytest.mark.parametrize("deaths", [0, 1000])
async def test_a_call_without_an_answer_is_given_up(deaths):
    replica = Answering(deaths=deaths, open=bool(deaths))
    with pytest.raises(ReplicaDied):
        await make_calls(replica, seconds=0.2).run(CAT, "four")


@pytest.mark.parametrize(("failures", "asked"), [(2, 3), (1000, 3)])
async def test_another_replica_is_asked_for_what_one_can_not_load_but_not_for_long(failures, asked):
    replica = Answering(deaths=failures, death=NotLoaded)
    ends = await asyncio.gather(make_calls(replica).run(CAT, "four"), return_exceptions=True)
    assert [str(end) for end in ends] == ["FOUR" if failures < asked else "killed"]
    assert len(replica.asked) == asked


async def test_calls_that_hang_do_not_hold_up_later_ones():
    replica = Answering(open=False)
    calls = make_calls(replica, seconds=0.2)
    hung = await started(*(calls.run(CAT, text) for text in "ab"))
    assert {type(each) for each in await asyncio.gather(*hung, return_exceptions=True)} == {ReplicaDied}
    await asyncio.sleep(0.1)
    replica.gate.set()
    assert await calls.run(CAT, "later") == "LATER"


async def test_requests_that_come_together_share_a_call_of_one_version():
    replica = Answering(open=False)
    calls = make_calls(replica)
    tasks = await started(
        *(
            calls.run(model, text)
            for model, text in [
                (CAT, "a"),
                (CAT, "b"),
                (CAT, "c"),
                (DOG, "d"),
                (DOG, "bad"),
                (DOG, "e"),
                (CAT, "f"),
            ]
        )
    )
    assert replica.asked == [(CAT, ["a"]), (CAT, ["b"])]  # two calls leave at once
    replica.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(each) for each in answers] == ["A", "B", "C", "D", "bad", "E", "F"]  # one that fails fails alone
    assert replica.asked[2:] == [(CAT, ["c", "f"]), (DOG, ["d", "bad", "e"])]


async def test_a_call_leaves_when_it_carries_as_many_requests_as_those_under_way():
    """So that calls grow with the load: the first requests to come back don't leave alone."""
    replica = Answering(open=False)
    calls = make_calls(replica)
    first = await started(*(calls.run(CAT, text) for text in ("a", "b", "c", "d", "e", "f")))
    assert [requests for _, requests in replica.asked] == [["a"], ["b"]]
    replica.gate.set()
    await asyncio.gather(*first)
    assert replica.asked[2:] == [(CAT, ["c", "d", "e", "f"])]
    replica.gate.clear()
    await started(*(calls.run(CAT, text) for text in "gh"))  # nothing is under way: g leaves, then h is as many
    assert [requests for _, requests in replica.asked[3:]] == [["g"], ["h"]]


async def test_a_small_request_does_not_wait_for_a_large_one():
    replica = Answering(open=False)
    calls = make_calls(replica)
    await started(calls.run(CAT, "x" * 64), calls.run(CAT, "y"))
    assert [len(requests[0]) for _, requests in replica.asked] == [64, 1]


async def test_the_load_does_not_wait_in_the_gateway():
    """What waits is always less than a full call, so replicas see the load."""
    replica = Answering(open=False)
    calls = make_calls(replica, limit=1000)
    await started(*(calls.run(CAT, "image") for _ in range(100)))
    assert 500 - 5 * sum(len(requests) for _, requests in replica.asked) < 16
    assert len(replica.asked) < 40


async def test_too_many_images_under_way_are_refused_and_cancelled_ones_make_room():
    replica, metrics = Answering(open=False), RecordingMetrics()
    calls = make_calls(replica, metrics, limit=4)
    tasks = await started(*(calls.run(CAT, text) for text in "abcd"))
    with pytest.raises(Busy):
        await calls.run(CAT, "e")
    assert metrics.counts["rejected", "test"] == 1
    calls.observe()
    assert metrics.values["waiting_images", "test"][-1] == 4
    tasks[3].cancel()  # it waits for a call; those in calls are being computed
    replica.gate.set()
    assert await asyncio.gather(*tasks[:3]) == ["A", "B", "C"]
    calls.observe()
    assert metrics.values["waiting_images", "test"][-1] == 0
    assert [requests for _, requests in replica.asked] == [["a"], ["b"], ["c"]]
    assert await calls.run(CAT, "four") == "FOUR"


def test_names_in_any_script_fit_headers():
    names = [f"raygan-generator-{label}" for label in ("cat", "猫", "狗", "c\u00e4t")]
    assert [walk_headers(ModelVersion(name, "1"), 0, 1)["X-Raygan-Model"].isascii() for name in names] == [True] * 4
