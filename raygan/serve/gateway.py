"""The deployments, as Ray Serve runs them: thin shells around the other modules.

`GatewayDeployment` holds handles to the others and is the only one that speaks HTTP. The callers reach replicas over
handles, and turn what Ray raises for a dead replica into `ReplicaDied`. Every process of the service imports this
module, so it doesn't import torch: replicas do when they start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raygan.errors import last_line
from raygan.serve.api import create_app
from raygan.serve.auth import check_token, read_token
from raygan.serve.batching import Batcher, Busy
from raygan.serve.cors import with_cors
from raygan.serve.listener import Address, Listener
from raygan.serve.messages import Champions, ClassifyRequest, ModelVersion, Pixels, Predictions, SampleRequest
from raygan.serve.metrics import RayMetrics
from raygan.serve.middleware import GatewayMiddleware
from raygan.serve.model_store import Fetch, Files, Finish, ModelStore
from raygan.serve.retries import ReplicaDied
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Seconds that a starting gateway waits for the models before it answers without them.
_START_SECONDS = 60.0

#: Seconds in which the number of replicas hardly changes. Asking Serve for it takes about 50 ms of this process.
_REPLICAS_FRESH = 0.5

_DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError)


class _Caller:
    """Calls replicas over a handle."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._methods: dict[str, DeploymentHandle] = {}

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        described = dict(await self._ask("prepare", model))  # waits for the first replica if there is none yet
        try:
            await self._handle.broadcast("prepare", model).results_async()
        except (
            Exception
        ) as error:  # a replica that is starting or stopping; one without the version fetches it on demand
            log.info("not every replica loaded %s: %s", model, type(error).__name__)
        return described

    async def _ask(self, method: str, *arguments: Any) -> Any:
        if method not in self._methods:  # making one takes as long as calling it
            self._methods[method] = self._handle.options(method_name=method)
        try:
            return await self._methods[method].remote(*arguments)
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


class GeneratorCaller(_Caller):
    """Calls a generator's replicas."""

    async def call(self, model: ModelVersion, items: list[SampleRequest]) -> tuple[list[Pixels], float]:
        pixels, seconds = await self._ask("sample", model, items)
        answers, start = [], 0
        for request in items:
            answers.append(pixels[start : start + len(request)])
            start += len(request)
        return answers, seconds


class ClassifierCaller(_Caller):
    """Calls the classifier's replicas."""

    async def call(self, model: ModelVersion, items: list[ClassifyRequest]) -> tuple[list[Predictions], float]:
        predictions, seconds = await self._ask("classify", model, items)
        answers, start = [], 0
        for request in items:
            answers.append(predictions.rows(range(start, start + len(request))))
            start += len(request)
        return answers, seconds


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


async def _load_champions(
    prepare: Callable[[ModelVersion], Awaitable[Any]],
    store: DeploymentHandle,
    wanted: Callable[[Champions], Iterable[ModelVersion | None]],
) -> None:
    """Load a starting replica's champions. Nothing wrong with them may keep it from serving other versions."""
    try:
        for model in {model for model in wanted(await store.champions.remote()) if model}:
            try:
                await prepare(model)
            except Exception as error:
                log.warning("cannot load %s: %s", model, last_line(error))
    except Exception as error:
        log.warning("cannot ask for the models: %s", last_line(error))


class GeneratorDeployment:
    """A generator's replica under Serve. Ready once the champion is loaded or has failed to load."""

    async def __init__(self, settings: ServeSettings, name: str, store: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import GeneratorReplica

        self._replica = GeneratorReplica(settings, fetch_through(store), finish_through(store))
        await _load_champions(
            self.prepare, store, lambda champions: (m for m in champions.generators.values() if m.name == name)
        )

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def sample(self, model: ModelVersion, requests: list[SampleRequest]) -> tuple[Pixels, float]:
        return await self._replica.sample(model, requests)


class ClassifierDeployment:
    """The classifier's replica under Serve. Ready once the champion, if any, is loaded or has failed to load."""

    async def __init__(self, settings: ServeSettings, store: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import ClassifierReplica

        self._replica = ClassifierReplica(settings, fetch_through(store), finish_through(store))
        await _load_champions(self.prepare, store, lambda champions: [champions.classifier])

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def classify(self, model: ModelVersion, requests: list[ClassifyRequest]) -> tuple[Predictions, float]:
        return await self._replica.classify(model, requests)


@dataclass(frozen=True)
class Handles:
    """The gateway's handles to the other deployments. generators: by registered model name."""

    generators: dict[str, DeploymentHandle]
    classifier: DeploymentHandle
    store: DeploymentHandle


@serve.ingress()
class GatewayDeployment:
    """The HTTP side of the service.

    Args:
        settings: of the service.
        handles: to the other deployments.
        address: of the service.
        has_proxies: Serve's proxies listen at the address and pass requests on; otherwise the gateway listens itself.
    Raises:
        ConfigurationError: a token is required and this node has none.
    """

    _listener: Listener | None = None

    async def __init__(  # type: ignore[misc]
        self, settings: ServeSettings, handles: Handles, address: Address, has_proxies: bool
    ):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        check_token(settings, address.host)  # on this node, not only on the one that deployed
        self._settings, self._store = settings, handles.store
        metrics = RayMetrics()
        limits: dict[str, Any] = {
            "batch": settings.batch_images,
            "max_call": settings.call_images,
            "limit": settings.max_waiting_images,
            "seconds": settings.timeout_seconds,
        }
        generators = {
            name: Batcher(f"generator:{name}", GeneratorCaller(handle), len, metrics, **limits)
            for name, handle in handles.generators.items()
        }
        classifier = Batcher("classifier", ClassifierCaller(handles.classifier), len, metrics, **limits)
        self._service = Service(
            generators,
            classifier,
            metrics,
            max_draws=settings.max_draws,
            seconds=settings.timeout_seconds,
            exists=handles.store.exists.remote,
        )
        self._batchers: dict[str, Batcher[Any, Any]] = {
            **{generator_deployment(name): batcher for name, batcher in generators.items()},
            "Classifier": classifier,
        }
        self._missing, self._stopped = ["models"], True
        self._following = asyncio.ensure_future(self._follow())
        # Serve sends requests once this returns; a model that fails to load must not delay the others.
        deadline = time.monotonic() + _START_SECONDS
        while (self._stopped or self._service.is_loading()) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        max_bytes = int(settings.max_request_megabytes * 1e6)
        self._app: ASGIApp = GatewayMiddleware(
            create_app(self._service, settings, self._not_ready),
            metrics,
            token=read_token(settings),
            max_bytes=max_bytes,
            seconds=settings.timeout_seconds,
            max_sending=settings.max_sending_megabytes * 1e6,
            access_log=settings.access_log,
            has_proxies=has_proxies,
        )
        self._app = with_cors(self._app, settings.cors_origins)
        if not has_proxies:
            self._listener = Listener(self._app, address, settings.timeout_seconds, max_bytes)
            await self._listener.open()

    async def __del__(self) -> None:
        """Serve awaits this before it stops a replica."""
        if self._listener:
            await self._listener.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for an application that exists only after `__init__`."""
        return self._app

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
            await asyncio.sleep(min(seconds, 0.5) if self._missing else seconds)

    async def _look(self) -> None:
        stopped = await self._count_replicas()
        champions: Champions = await self._store.champions.remote()
        began = time.monotonic()
        await self._service.refresh(champions)
        if self._service.champions != champions.proven:
            await self._store.confirm.remote(self._service.champions)
        if time.monotonic() - began > _REPLICAS_FRESH:  # replicas may have started meanwhile
            stopped = await self._count_replicas()
        self._stopped = bool(stopped)
        self._missing = stopped + [str(model) for model in self._service.not_served(champions)]

    async def _count_replicas(self) -> list[str]:
        """Tell the batchers how many replicas they have; returns the deployments without any."""
        running = await asyncio.to_thread(_running_replicas)
        for name, batcher in self._batchers.items():
            batcher.replicas = running.get(name, batcher.replicas)
        return [name for name in self._batchers if running.get(name, 1) < 1]


def _running_replicas() -> dict[str, int]:
    """The number of running replicas of each deployment in this application."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    if application is None:
        return {}
    return {name: status.replica_states.get("RUNNING", 0) for name, status in application.deployments.items()}


def generator_deployment(model: str) -> str:
    """The deployment name of a registered generator."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", model.removeprefix("raygan-"))
    # A replaced character may have been all that told it from another.
    return name if name in model else f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
