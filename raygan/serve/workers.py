"""Threads for pictures, beside the gateway's event loop: encoding samples, decoding uploads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from raygan.serve.metrics import Metrics

T = TypeVar("T")


class PictureWorkers:
    """A thread pool that times its work.

    Args:
        name: the stage in metrics.
        threads: number of threads.
        metrics: where times go.
    """

    def __init__(self, name: str, threads: int, metrics: Metrics):
        self._pool = ThreadPoolExecutor(threads, name)
        self._name, self._metrics = name, metrics

    async def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call `work` in a thread."""
        loop = asyncio.get_running_loop()
        asked = time.perf_counter()

        def timed() -> tuple[T, float, float]:
            began = time.perf_counter()
            return work(*arguments, **options), began, time.perf_counter()

        result, began, ended = await loop.run_in_executor(self._pool, timed)
        self._metrics.observe("stage_seconds", began - asked, stage=self._name, part="waiting")
        self._metrics.observe("stage_seconds", ended - began, stage=self._name, part="computing")
        return result

    def run_here(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work` at once, for work shorter than the switch to a thread."""
        began = time.perf_counter()
        result = work(*arguments)
        self._metrics.observe("stage_seconds", time.perf_counter() - began, stage=self._name, part="computing")
        return result
