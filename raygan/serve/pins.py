"""Versions that requests pin with `version`, beside the champions: looked up and loaded on demand."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from raygan.errors import last_line
from raygan.serve.calls import Busy, ReplicaDied
from raygan.serve.messages import ModelVersion
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

#: Versions whose description is kept; the least recently used goes first. Replicas keep fewer, and load again.
_MAX_PINS = 32

#: Versions that load at once; each takes seconds of a core.
_MAX_LOADING = 2

#: Seconds that a request waits for its version; the load goes on.
_SECONDS = 15.0

#: Whether the registry has a version. Raises if it doesn't answer.
Exists = Callable[[ModelVersion], Awaitable[bool]]


async def always(model: ModelVersion) -> bool:
    """An `Exists` for services without a registry: loading tells."""
    return True


class Pins:
    """The pinned versions that replicas have loaded.

    Args:
        exists: asks the registry.
    """

    def __init__(self, exists: Exists = always):
        self._exists = exists
        self._described: OrderedDict[ModelVersion, dict[str, Any]] = OrderedDict()
        self._loading: dict[ModelVersion, asyncio.Task[dict[str, Any]]] = {}

    async def described(
        self, model: ModelVersion, prepare: Callable[[ModelVersion], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """What replicas say about a version, which they load first if necessary.

        Raises:
            Problem: the version is unknown (404), can't be loaded (409), or isn't loaded yet (503).
            Busy: too many versions are loading.
        """
        if model not in self._described:
            self._described[model] = await self._load(model, prepare)
            while len(self._described) > _MAX_PINS:
                self._described.popitem(last=False)
        self._described.move_to_end(model)
        return self._described[model]

    def about(self, model: ModelVersion) -> dict[str, Any]:
        """The same of a version that is loaded; empty otherwise."""
        return self._described.get(model, {})

    async def _load(
        self, model: ModelVersion, prepare: Callable[[ModelVersion], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        if model not in self._loading:
            if len(self._loading) >= _MAX_LOADING:
                raise Busy(5)
            task = asyncio.ensure_future(self._find_and_prepare(model, prepare))
            self._loading[model] = task
            task.add_done_callback(lambda done: self._ended(model, done))
        try:
            # Shielded: others may wait for it, and the next request finds what took too long for this one.
            return await asyncio.wait_for(asyncio.shield(self._loading[model]), _SECONDS)
        except TimeoutError:
            raise unavailable(f"{model} is being loaded", 5) from None

    def _ended(self, model: ModelVersion, task: asyncio.Task[dict[str, Any]]) -> None:
        del self._loading[model]
        if not task.cancelled() and not task.exception():
            self._described[model] = task.result()

    async def _find_and_prepare(
        self, model: ModelVersion, prepare: Callable[[ModelVersion], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        try:
            known = await self._exists(model)
        except Exception as error:
            log.warning("cannot look for %s: %s", model, last_line(error))
            raise unavailable("the model registry does not answer", 5) from None
        if not known:
            raise Problem(404, f"there is no {model}", field="version")
        try:
            return await prepare(model)
        except (Busy, ReplicaDied):
            raise
        except Exception as error:
            log.warning("cannot load %s: %s", model, last_line(error))
            raise Problem(409, f"{model} can't be loaded", field="version") from None
