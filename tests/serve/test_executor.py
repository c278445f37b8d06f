"""The executor: how rows of calls are split and joined into batches."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch

from raygan.serve.executor import Executor, Threads, is_batch_invariant


@pytest.mark.parametrize("padded", [False, True])
async def test_each_call_gets_its_own_rows(padded):
    sizes = []

    def compute(rows, others):
        sizes.append(len(rows))
        return rows * 2 + others

    executor = Executor(compute, Threads(2), batch=8, padded=padded)
    inputs = [(torch.rand(n, 3), torch.rand(n, 3)) for n in (1, 20, 3, 8, 2)]
    answers = await asyncio.gather(*(executor.run(*pair) for pair in inputs))
    for (rows, others), answer in zip(inputs, answers, strict=True):
        assert torch.equal(answer, rows * 2 + others)
    assert max(sizes) <= 8
    if padded:
        assert set(sizes) == {8}


async def test_threads_split_a_lone_call_and_leave_rows_of_several_together():
    sizes, gate = [], threading.Event()

    def compute(rows):
        sizes.append(len(rows))
        gate.wait(240)
        return rows

    executor = Executor(compute, Threads(2), batch=16, padded=False)

    async def begun(*calls, batches=0):
        sizes.clear()
        asked = [asyncio.ensure_future(executor.run(torch.rand(n, 1))) for n in calls]
        await asyncio.sleep(0.05)
        while len(sizes) < batches:
            await asyncio.sleep(0.01)
        return asked

    first = await begun(*[1] * 12, batches=1)  # twelve requests in one message
    assert sizes == [12]
    second = await begun(*[1] * 10, batches=1)
    assert sizes == [10]
    third = await begun(3)
    assert sizes == []
    gate.set()
    await asyncio.gather(*first, *second, *third)
    for calls, expected in (([5], [4, 1]), ([16], [8, 8]), ([1, 1, 1], [3]), ([16, 16], [16, 16]), ([2] * 12, [16, 8])):
        await asyncio.gather(*await begun(*calls))
        assert sizes == expected


async def test_rows_of_different_shapes_and_rows_meant_to_be_alone_are_not_joined():
    seen = []

    def compute(rows):
        seen.append(tuple(rows.shape))
        return rows.flatten(1).sum(1)

    executor = Executor(compute, Threads(1), batch=8, padded=False)
    await asyncio.gather(
        executor.run(torch.rand(1, 2)), executor.run(torch.rand(1, 2)), executor.run(torch.rand(1, 2)),
        executor.run(torch.rand(1, 3)), executor.run(torch.rand(1, 2), alone=True), executor.run(torch.rand(1, 2)),
    )  # fmt: skip
    assert seen == [(3, 2), (1, 3), (1, 2), (1, 2)]


async def test_an_error_reaches_the_calls_of_its_batch_and_no_others():
    def compute(rows):
        if (rows < 0).any():
            raise ValueError("negative")
        return rows

    executor = Executor(compute, Threads(1), batch=1, padded=False)
    good, bad, after = await asyncio.gather(
        executor.run(torch.ones(1, 1)),
        executor.run(-torch.ones(1, 1)),
        executor.run(torch.ones(1, 1)),
        return_exceptions=True,
    )
    assert torch.equal(good, after)
    assert isinstance(bad, ValueError)


async def test_cancelled_calls_are_not_computed():
    seen, go_on = [], threading.Event()

    def compute(rows):
        go_on.wait(240)
        seen.append(int(rows[0, 0]))
        return rows

    executor = Executor(compute, Threads(1), batch=1, padded=False)
    asked = [asyncio.ensure_future(executor.run(torch.full((1, 1), float(i)))) for i in range(4)]
    await asyncio.sleep(0.01)
    asked[2].cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [int(answer[0, 0]) for i, answer in enumerate(answers) if i != 2] == [0, 1, 3]
    assert seen == [0, 1, 3]


async def test_networks_share_threads_and_take_turns():
    """What one network keeps busy the other doesn't split its rows for; a queue in one doesn't hold the other up."""
    seen, left, gates = [], [], {"first": threading.Event(), "second": threading.Event()}

    def network(name):
        def compute(rows):
            seen.append((name, len(rows)))
            gates[name].wait(240)
            left.append(name)
            return rows

        return Executor(compute, threads, batch=16, padded=False)

    threads = Threads(2)
    first, second = network("first"), network("second")

    async def until(batches):
        while len(seen) < batches:
            await asyncio.sleep(0.01)

    def begin(executor, rows):
        return asyncio.ensure_future(executor.run(torch.rand(rows, 1)))

    tasks = [begin(first, 4)]
    await until(1)
    tasks.append(begin(second, 12))
    await until(2)
    assert seen == [("first", 4), ("second", 12)]
    tasks += [begin(first, 40), begin(second, 3)]
    await asyncio.sleep(0.05)
    gates["second"].set()
    await until(3)
    gates["first"].set()
    while len(left) < 3:  # the loop waits, too, so that it finds both threads free at once
        time.sleep(0.01)
    time.sleep(0.1)
    await asyncio.gather(*tasks)
    assert seen[2] == ("first", 16)
    assert set(seen[3:5]) == {("second", 3), ("first", 16)}  # both threads were free at once
    assert sum(rows for _, rows in seen[5:]) == 8


def test_batch_invariance_is_found_by_trying():
    rows = torch.rand(16, 4)
    assert is_batch_invariant(lambda x: x * 2, [rows], 16)
    assert not is_batch_invariant(lambda x: x - x.mean(0), [rows], 16)
