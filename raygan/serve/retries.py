"""Retries: a call whose replica died is repeated on any replica. Sampling and classifying are idempotent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds before a retry, doubled each time up to the maximum.
_FIRST_PAUSE, _MAX_PAUSE = 0.05, 1.0


class ReplicaDied(Exception):  # noqa: N818 - a state of the service, not a fault of the program
    """A call's replica died or is unreachable; the call may be repeated."""


async def repeated(
    call: Callable[[], Awaitable[T]], *, seconds: float, wanted: Callable[[], bool], on_retry: Callable[[], None]
) -> T:
    """The answer of `call`, repeated while it raises ReplicaDied.

    Args:
        call: starts one attempt.
        seconds: time limit of an attempt.
        wanted: whether anybody still waits for the answer.
        on_retry: called before each retry.

    Raises:
        ReplicaDied: an attempt took too long, or nobody waits any more.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await asyncio.wait_for(call(), seconds)
        except TimeoutError:
            raise ReplicaDied("no answer in time") from None  # no request has time left for a retry
        except ReplicaDied:
            if not wanted():
                raise
            on_retry()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)
