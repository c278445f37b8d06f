"""How the gateway reaches the models' replicas: over Serve's handles.

Requests go through `calls`; what Ray raises for a dead replica becomes `ReplicaDied` here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sized
from typing import Any, Generic, TypeVar

import grpc.aio
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raygan.serve.calls import Busy, Calls, ReplicaDied, apart
from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import Metrics
from raygan.serve.problems import unavailable
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Seconds after which a client that found the models asleep should ask again.
_WAKING_SECONDS = 5

I = TypeVar("I", bound=Sized)  # noqa: E741 (a request's images)
A = TypeVar("A")

_DEATHS = (RayActorError, WorkerCrashedError)


class HandleStage(Generic[I, A]):
    """A stage over a handle to the models' replicas.

    Args:
        name: the stage in metrics.
        handle: to the replicas.
        method: what they do with requests.
        metrics: where counts and times go.
        settings: of the service.
        cold: whether no replica is running, because there was nothing to do.

    Attributes:
        calls: the calls under way.
    """

    def __init__(
        self,
        name: str,
        handle: DeploymentHandle,
        method: str,
        metrics: Metrics,
        settings: ServeSettings,
        cold: Callable[[], bool],
    ):
        self._handle = handle
        self._prepare, run = handle.options(method_name="prepare"), handle.options(method_name=method)
        self.calls = Calls[I, A](
            name,
            metrics,
            lambda model, requests: _ask(run, model, requests),
            limit=settings.max_waiting_images,
            seconds=settings.timeout_seconds,
        )
        self._cold, self._seconds = cold, settings.timeout_seconds
        self._waking: asyncio.Task[Any] | None = None

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        described = dict(await apart(_ask(self._prepare, model)))  # waits for the first replica if there is none yet
        try:
            async with asyncio.timeout(self._seconds):
                await self._handle.broadcast("prepare", model).results_async()
        except Exception as error:
            # A replica is starting, stopping or hanging; one without the version fetches it on demand.
            log.info("not every replica loaded %s: %s", model, type(error).__name__)
        return described

    async def run(self, model: ModelVersion, request: I) -> A:
        if self._cold():
            self._wake(model)
            raise unavailable("the models are starting", _WAKING_SECONDS)
        return await self.calls.run(model, request)

    def _wake(self, model: ModelVersion) -> None:
        """Have Serve start a replica: it does while a call waits for one. One call wakes, however many clients ask."""
        if self._waking is None or self._waking.done():
            self._waking = apart(_ask(self._prepare, model))
            self._waking.add_done_callback(lambda task: task.cancelled() or task.exception())


async def _ask(method: DeploymentHandle, *arguments: Any) -> Any:
    try:
        return await method.remote(*arguments)
    except _DEATHS as error:
        raise ReplicaDied(type(error).__name__) from None
    except DeploymentUnavailableError:
        raise ReplicaDied("no replica") from None
    except grpc.aio.AioRpcError as error:  # the replica ended while answering
        raise ReplicaDied(error.code().name) from None
    except BackPressureError:
        raise Busy(1) from None
    except RayTaskError as error:
        if isinstance(error.cause, _DEATHS):
            raise ReplicaDied(type(error.cause).__name__) from None
        raise
