"""A version that can't be loaded is not tried again and again, whoever wants it."""

import traceback

import pytest

from raygan.serve.backoff import Backoff
from raygan.serve.calls import Busy
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.problems import Problem
from tests.serve.local import make_service

BROKEN = ModelVersion("m", "1")


class Clock:
    """Time that only the test moves."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("raygan.serve.backoff.time", clock := Clock())
    return clock


class Stage:
    """Fails to load every version, and notes the tries."""

    def __init__(self):
        self.tried = []

    async def prepare(self, model):
        self.tried.append(model)
        raise ValueError("damaged")


def test_pauses_double_up_to_a_minute_and_end_with_a_success(clock):
    backoff, pauses = Backoff(), []
    for _ in range(6):
        backoff.failed(BROKEN, ValueError())
        began = clock.now
        while backoff.error(BROKEN):
            clock.now += 1
        pauses.append(clock.now - began)
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert BROKEN in backoff
    backoff.forget(BROKEN)
    assert BROKEN not in backoff


def test_failures_without_end_have_the_longest_pause(clock):
    backoff = Backoff()
    for _ in range(2000):
        backoff.failed(BROKEN, ValueError())
    clock.now += 59
    assert backoff.error(BROKEN)


def test_replicas_that_are_busy_say_nothing_about_a_version(clock):
    backoff = Backoff()
    backoff.failed(BROKEN, Busy(5))
    assert BROKEN in backoff
    assert backoff.error(BROKEN) is None


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_broken_version_is_tried_again_only_after_a_pause(clock, pinned):
    stage = Stage()
    service = make_service(stage, stage)
    service.champions = Champions({"cat": ModelVersion("m", "1000")})

    async def want():
        if pinned:
            with pytest.raises(Problem, match="can't be loaded"):
                await service.version("cat", "1")
        else:
            await service.refresh(Champions({"cat": BROKEN}))

    for moment, tries in ((0, 1), (4.9, 1), (5, 2), (14, 2), (15, 3)):
        clock.now = 1000.0 + moment
        await want()
        assert stage.tried.count(BROKEN) == tries


async def test_labels_that_share_a_broken_version_count_its_failure_once(clock):
    stage = Stage()
    service = make_service(stage, stage)
    for moment, tries in ((0, 1), (4.9, 1), (5, 2)):
        clock.now = 1000.0 + moment
        await service.refresh(Champions(dict.fromkeys("abc", BROKEN)))
        assert len(stage.tried) == tries


async def test_an_error_that_is_told_again_does_not_hold_former_requests(clock):
    stage, depths = Stage(), []
    service = make_service(stage, stage)
    service.champions = Champions({"cat": ModelVersion("m", "1000")})
    for _ in range(20):
        with pytest.raises(Problem) as caught:
            await service.version("cat", "1")
        depths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert len(set(depths[1:])) == 1, depths
