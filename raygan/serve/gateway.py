"""The deployments, as Ray Serve runs them: thin shells around the other modules.

`GatewayDeployment` holds handles to the others and is the only one that speaks HTTP. Its stages reach the replicas of
`ModelsDeployment` over a handle, and turn what Ray raises for a dead replica into `ReplicaDied`. Every process of the
service imports this module, so it doesn't import torch: replicas do when they start.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Sized
from typing import Any, Generic, TypeVar

import grpc.aio
import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raygan.errors import RayganError, last_line
from raygan.serve import logs
from raygan.serve.api import create_app
from raygan.serve.auth import check_token, read_token
from raygan.serve.calls import Busy, Calls, ReplicaDied
from raygan.serve.cors import with_cors
from raygan.serve.messages import Champions, ClassifyRequest, Drawn, ModelVersion, Predictions, SampleRequest
from raygan.serve.metrics import Metrics, RayMetrics
from raygan.serve.middleware import GatewayMiddleware
from raygan.serve.model_store import Fetch, Files, Finish, ModelStore
from raygan.serve.problems import unavailable
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Seconds that a starting gateway waits for the models before it answers without them.
_START_SECONDS = 60.0

#: Seconds after which a client that found the models asleep should ask again.
_WAKING_SECONDS = 5

#: The deployment of generators and classifiers.
MODELS = "Models"

#: States of a deployment whose replicas have gone, or are still to come, because of the load.
_ASLEEP = ("HEALTHY", "UPSCALING", "DOWNSCALING")

I = TypeVar("I", bound=Sized)  # noqa: E741 (a request's images)
A = TypeVar("A")
T = TypeVar("T")

_DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError)


class _Stage(Generic[I, A]):
    """A stage over a handle to the models' replicas.

    Args:
        name: the stage in metrics.
        handle: to the replicas.
        method: what they do with a request.
        metrics: where counts and times go.
        settings: of the service.
        cold: whether no replica is running, because there was nothing to do.
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
        self._prepare, self._run = handle.options(method_name="prepare"), handle.options(method_name=method)
        self._calls = Calls(name, metrics, limit=settings.max_waiting_images, seconds=settings.timeout_seconds)
        self._cold = cold
        self._waking: asyncio.Task[Any] | None = None

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        described = dict(await _apart(_ask(self._prepare, model)))  # waits for the first replica if there is none yet
        try:
            await self._handle.broadcast("prepare", model).results_async()
        except (
            Exception
        ) as error:  # a replica that is starting or stopping; one without the version fetches it on demand
            log.info("not every replica loaded %s: %s", model, type(error).__name__)
        return described

    async def run(self, model: ModelVersion, request: I) -> A:
        if self._cold():
            self._wake(model)
            raise unavailable("the models are starting", _WAKING_SECONDS)
        return await self._calls.call(len(request), lambda: _ask(self._run, model, request))

    def _wake(self, model: ModelVersion) -> None:
        """Have Serve start a replica: it does while a call waits for one. One call wakes, however many clients ask."""
        if self._waking is None or self._waking.done():
            self._waking = _apart(_ask(self._prepare, model))
            self._waking.add_done_callback(lambda task: task.cancelled() or task.exception())


def _apart(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a call that Serve doesn't cancel with the request that it came from, which Serve finds in the context."""
    return contextvars.Context().run(asyncio.ensure_future, call)


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


class ModelStoreDeployment(ModelStore):
    """The model store under Serve. Files travel through Ray's object store: Serve's messages are limited in size."""

    def files_in_store(self, model: ModelVersion) -> list[ray.ObjectRef]:
        """A reference to `files`, in a list, since Ray would resolve a bare one."""
        return [ray.put(self.files(model))]


def fetch_through(store: DeploymentHandle) -> Fetch:
    """The function with which replicas get a model's files."""

    async def fetch(model: ModelVersion) -> Files:
        references: list[ray.ObjectRef] = await store.files_in_store.remote(model)
        files: Files = await references[0]
        return files

    return fetch


def finish_through(store: DeploymentHandle) -> Finish:
    """The function with which replicas say that they have survived loading a version."""

    async def finish(model: ModelVersion) -> None:
        await store.finish.remote(model)

    return finish


class ModelsDeployment:
    """Generators and the classifier under Serve. Ready once each champion is loaded or has failed to load."""

    async def __init__(self, settings: ServeSettings, store: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import Replica

        logs.configure()
        self._replica = Replica(settings, fetch_through(store), finish_through(store))
        # Nothing wrong with one champion may keep the replica from serving other versions.
        try:
            champions: Champions = await store.champions.remote()
            for model in {model for model in (*champions.generators.values(), champions.classifier) if model}:
                try:
                    await self._replica.prepare(model)
                except Exception as error:
                    log.warning("cannot load %s: %s", model, last_line(error))
        except Exception as error:
            log.warning("cannot ask for the models: %s", last_line(error))

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def draw(self, model: ModelVersion, request: SampleRequest) -> tuple[Drawn, float]:
        return await self._replica.draw(model, request)

    async def classify(self, model: ModelVersion, request: ClassifyRequest) -> tuple[Predictions, float]:
        return await self._replica.classify(model, request)


@serve.ingress()
class GatewayDeployment:
    """The HTTP side of the service.

    Args:
        settings: of the service.
        models: handle to `ModelsDeployment`.
        store: handle to `ModelStoreDeployment`.
        host: where Serve listens.
    Raises:
        ConfigurationError: a token is required and this node has none.
    """

    _middleware: GatewayMiddleware | None = None

    async def __init__(  # type: ignore[misc]
        self, settings: ServeSettings, models: DeploymentHandle, store: DeploymentHandle, host: str
    ):
        logs.configure()
        check_token(settings, host)  # on this node, not only on the one that deployed
        self._settings, self._store = settings, store
        metrics = RayMetrics()
        self._cold, self._stopped, self._missing = False, True, ["models"]

        def stage(name: str, method: str) -> _Stage[Any, Any]:
            return _Stage(name, models, method, metrics, settings, lambda: self._cold)

        self._service = Service(
            stage("generator", "draw"),
            stage("classifier", "classify"),
            metrics,
            max_draws=settings.max_draws,
            seconds=settings.timeout_seconds,
            exists=store.exists.remote,
        )
        self._following = asyncio.ensure_future(self._follow())
        # Serve sends requests once this returns; a model that fails to load must not delay the others.
        deadline = time.monotonic() + _START_SECONDS
        while (self._stopped or self._service.is_loading()) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._middleware = GatewayMiddleware(
            create_app(self._service, settings, self._not_ready),
            metrics,
            token=read_token(settings),
            max_bytes=int(settings.max_request_megabytes * 1e6),
            max_sending=settings.max_sending_megabytes * 1e6,
            seconds=settings.timeout_seconds,
            access_log=settings.access_log,
            has_proxies=True,
        )
        self._app = with_cors(self._middleware, settings.cors_origins)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for an application that exists only after `__init__`."""
        return self._app

    def check_health(self) -> None:
        """Serve replaces a gateway that raises here."""
        if self._following.done():
            raise RuntimeError("the gateway no longer follows the registry")

    def _not_ready(self) -> list[str]:
        """What keeps a started service from being ready: one label must not take the others away."""
        return self._missing if self._service.serves_nothing() else []

    async def _follow(self) -> None:
        """Keep up with the registry and the number of replicas, forever."""
        while True:
            try:
                await self._look()
            except Exception as error:  # MLflow or a replica is away: go on with what is loaded, and look again
                log.warning("cannot look for new versions: %s", last_line(error))
            seconds = self._settings.poll_seconds
            await asyncio.sleep(min(seconds, 0.5) if self._missing or self._cold else seconds)

    async def _look(self) -> None:
        self._reload_token()
        none_running, self._cold = await asyncio.to_thread(_replicas)
        self._stopped = none_running and not self._cold
        champions: Champions = await self._store.champions.remote()
        await self._service.refresh(champions)
        if self._service.champions != champions.proven:
            await self._store.confirm.remote(self._service.champions)
        stopped = [MODELS] if self._stopped else []
        self._missing = stopped + [str(model) for model in self._service.not_served(champions)]
        self._service.metrics.observe("not_served", len(self._missing))

    def _reload_token(self) -> None:
        """A rotated token counts from the next look on; a file that is being replaced keeps the former one."""
        if self._settings.token_file and self._middleware:
            try:
                self._middleware.set_token(read_token(self._settings))
            except RayganError as error:
                log.warning("the former token stays: %s", error)


def _replicas() -> tuple[bool, bool]:
    """Whether no replica of the models is running, and whether that is because Serve has scaled them to zero."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    deployment = application.deployments.get(MODELS) if application else None
    if deployment is None or deployment.replica_states.get("RUNNING", 0):
        return False, False
    return True, deployment.status in _ASLEEP
