"""Versions that requests pin with `version`, beside the champions: looked up and loaded on demand."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from raygan.errors import last_line
from raygan.serve.backoff import Backoff
from raygan.serve.calls import Busy, ReplicaDied
from raygan.serve.messages import ModelVersion
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

#: Versions whose description is kept; the least recently used goes first. Replicas keep fewer, and load again.
_MAX_PINS = 32

#: Versions that are looked up or load at once; a load takes seconds of a core.
_MAX_UNDER_WAY = 2

#: Seconds that a request waits for its version; the load goes on.
_SECONDS = 15.0

T = TypeVar("T")

#: Has replicas load a version, and describes it.
Prepare = Callable[[ModelVersion], Awaitable[dict[str, Any]]]

#: Whether the registry has a version. Raises if it doesn't answer.
Exists = Callable[[ModelVersion], Awaitable[bool]]


class Pins:
    """The pinned versions that replicas have loaded.

    Args:
        exists: asks the registry.
    """

    def __init__(self, exists: Exists):
        self._exists = exists
        self._failed = Backoff()
        self._described: OrderedDict[ModelVersion, dict[str, Any]] = OrderedDict()
        self._under_way: dict[tuple[str, ModelVersion], asyncio.Task[Any]] = {}

    async def find(self, model: ModelVersion) -> None:
        """Look a version up in the registry.

        Raises:
            Problem: the version is unknown (404), or the registry doesn't answer (503).
            Busy: too many versions are being looked up or loaded.
        """
        await self._once(("find", model), lambda: self._find(model))

    async def described(self, model: ModelVersion, prepare: Prepare) -> dict[str, Any]:
        """What replicas say about a version, which they load first if necessary.

        Raises:
            Problem: the version can't be loaded (409), or isn't loaded yet (503).
            Busy: too many versions are being looked up or loaded.
        """
        about: dict[str, Any] | None = self._described.get(model)
        if about is None:
            if error := self._failed.error(model):
                raise error.with_traceback(None)  # a new one: it would hold every request that it is told to
            about = await self._once(("load", model), lambda: self._load(model, prepare))
        else:
            self._described.move_to_end(model)
        return about

    def about(self, model: ModelVersion) -> dict[str, Any]:
        """The same of a version that is loaded; empty otherwise."""
        return self._described.get(model, {})

    async def _once(self, key: tuple[str, ModelVersion], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` gives, done once for all who ask for it meanwhile."""
        if key not in self._under_way:
            if len(self._under_way) >= _MAX_UNDER_WAY:
                raise Busy(5)
            task = asyncio.ensure_future(work())
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        try:
            # Shielded: others may wait for it, and the next request finds what took too long for this one.
            result: T = await asyncio.wait_for(asyncio.shield(self._under_way[key]), _SECONDS)
            return result
        except TimeoutError:
            raise unavailable(f"{key[1]} is being loaded", 5) from None

    def _ended(self, key: tuple[str, ModelVersion], task: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # retrieved, even if nobody waits any more: asyncio would complain

    async def _find(self, model: ModelVersion) -> None:
        try:
            known = await self._exists(model)
        except Exception as error:
            log.warning("cannot look for %s: %s", model, last_line(error))
            raise unavailable("the model registry does not answer", 5) from None
        if not known:
            raise Problem(404, f"there is no {model}", field="version")

    async def _load(self, model: ModelVersion, prepare: Prepare) -> dict[str, Any]:
        try:
            about = await prepare(model)
        except (Busy, ReplicaDied):
            raise
        except Exception as error:
            log.warning("cannot load %s: %s", model, last_line(error))
            problem = Problem(409, f"{model} can't be loaded", field="version")
            self._failed.failed(model, problem)
            raise problem from None
        self._failed.forget(model)
        self._described[model] = about
        while len(self._described) > _MAX_PINS:
            self._described.popitem(last=False)
        return about
