"""The graph's deployments, as Ray Serve runs them: thin shells around what the other modules do.

`GatewayDeployment` holds handles to the others and is the only one that speaks HTTP. `RayCaller` is the way over a
handle, and turns what Ray raises for a dead replica into `Died`. Every process of the graph imports this module, so it
imports no torch: the replicas do when they start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
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
from raygan.serve.batching import Busy, Died, Stage
from raygan.serve.listener import Address, Listener
from raygan.serve.messages import Champions, Draws, Judge, ModelVersion, Pixels, Verdicts
from raygan.serve.metrics import RayMeters
from raygan.serve.middleware import Guard
from raygan.serve.model_store import Fetch, Files, Registry
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Seconds that the gateway waits for the models before it answers without them.
_PATIENCE = 60.0

#: Seconds in which the number of replicas hardly changes. To ask Serve for it takes some 50 ms of this process.
_SOON = 0.5

_DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError)


class _Caller:
    """What both kinds of callers share."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._methods: dict[str, DeploymentHandle] = {}

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        described = dict(await self._ask("prepare", model))  # waits for the first replica, where there is none yet
        try:
            await self._handle.broadcast("prepare", model).results_async()
        except Exception as error:  # a replica that starts or ends just now; one without the version fetches it later
            log.info("not every replica has loaded %s: %s", model, type(error).__name__)
        return described

    async def _ask(self, method: str, *arguments: Any) -> Any:
        if method not in self._methods:  # to make one takes as long as to call it
            self._methods[method] = self._handle.options(method_name=method)
        try:
            return await self._methods[method].remote(*arguments)
        except _DEATHS as error:
            raise Died(type(error).__name__) from None
        except DeploymentUnavailableError:
            raise Died("no replica") from None
        except grpc.aio.AioRpcError as error:  # of a replica that ended while it answered
            raise Died(error.code().name) from None
        except BackPressureError:
            raise Busy(1) from None
        except RayTaskError as error:
            if isinstance(error.cause, _DEATHS):
                raise Died(type(error.cause).__name__) from None
            raise


class GeneratorCaller(_Caller):
    """The way to a generator's replicas."""

    async def call(self, model: ModelVersion, items: list[Draws]) -> tuple[list[Pixels], float]:
        pixels, seconds = await self._ask("sample", model, items)
        answers, start = [], 0
        for draws in items:
            answers.append(pixels[start : start + len(draws)])
            start += len(draws)
        return answers, seconds


class ClassifierCaller(_Caller):
    """The way to the classifier's replicas."""

    async def call(self, model: ModelVersion, items: list[Judge]) -> tuple[list[Verdicts], float]:
        verdicts, seconds = await self._ask("classify", model, items)
        answers, start = [], 0
        for judge in items:
            answers.append(Verdicts(verdicts.labels, verdicts.probabilities[start : start + len(judge)]))
            start += len(judge)
        return answers, seconds


class RegistryDeployment(Registry):
    """The registry under Serve: files travel through Ray's object store, being larger than Serve's messages may be."""

    def files_in_store(self, model: ModelVersion) -> list[ray.ObjectRef]:
        """A reference to `files`; in a list, since Ray would replace a bare one with what it refers to."""
        return [ray.put(self.files(model))]


def fetch_through(registry: DeploymentHandle) -> Fetch:
    """How a replica gets a model's files."""

    async def fetch(model: ModelVersion) -> Files:
        references: list[ray.ObjectRef] = await registry.files_in_store.remote(model)
        files: Files = await references[0]
        return files

    return fetch


async def _try(prepare: Callable[[ModelVersion], Awaitable[Any]], model: ModelVersion) -> None:
    """Load the champion; a broken one must not keep the replica from the version that is in force."""
    try:
        await prepare(model)
    except Exception as error:
        log.warning("%s can't be loaded: %s", model, last_line(error))


class GeneratorDeployment:
    """A generator's replica under Serve: ready when the champion is loaded, or can't be."""

    async def __init__(self, settings: ServeSettings, name: str, registry: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import GeneratorReplica

        self._replica = GeneratorReplica(settings, fetch_through(registry))
        champions: Champions = await registry.champions.remote()
        for model in set(champions.generators.values()):
            if model.name == name:
                await _try(self.prepare, model)

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def sample(self, model: ModelVersion, wanted: list[Draws]) -> tuple[Pixels, float]:
        return await self._replica.sample(model, wanted)


class ClassifierDeployment:
    """The classifier's replica under Serve: ready when the champion is loaded or can't be, or there is none."""

    async def __init__(self, settings: ServeSettings, registry: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import ClassifierReplica

        self._replica = ClassifierReplica(settings, fetch_through(registry))
        champions: Champions = await registry.champions.remote()
        if champions.classifier is not None:
            await _try(self.prepare, champions.classifier)

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def classify(self, model: ModelVersion, wanted: list[Judge]) -> tuple[Verdicts, float]:
        return await self._replica.classify(model, wanted)


@dataclass(frozen=True)
class Handles:
    """The gateway's ways to the other deployments. generators: by registered model's name."""

    generators: dict[str, DeploymentHandle]
    classifier: DeploymentHandle
    registry: DeploymentHandle


@serve.ingress()
class GatewayDeployment:
    """The HTTP side of the graph.

    address: where the service is. has_proxies: Serve's proxies listen there, and it answers what they pass on; else it
    listens itself. Raises ConfigurationError if a token is needed and this node has none.
    """

    _listener: Listener | None = None

    async def __init__(  # type: ignore[misc]
        self,
        settings: ServeSettings,
        handles: Handles,
        address: Address,
        has_proxies: bool,
    ):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        check_token(settings, address.host)  # on this node, which needn't be the one that deployed us
        self._settings, self._registry, self._meters = settings, handles.registry, RayMeters()
        limits: dict[str, Any] = {
            "batch": settings.batch_images,
            "most": settings.call_images,
            "limit": settings.max_waiting_images,
            "seconds": settings.timeout_seconds,
        }
        stages = {
            name: Stage(f"generator:{name}", GeneratorCaller(handle), len, self._meters, **limits)
            for name, handle in handles.generators.items()
        }
        judge = Stage("classifier", ClassifierCaller(handles.classifier), len, self._meters, **limits)
        self.service = Service(
            stages, judge, self._meters, most_draws=settings.max_draws, seconds=settings.timeout_seconds
        )
        self._deployments: dict[str, Stage[Any, Any]] = {
            generator_deployment(name): stage for name, stage in stages.items()
        }
        self._deployments["Classifier"] = judge
        self._missing = ["models"]
        self._following = asyncio.ensure_future(self._follow())
        # Serve lets requests in when this returns; a model that can't be loaded must not keep the others waiting.
        deadline = time.monotonic() + _PATIENCE
        while self._missing and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        most_bytes = int(settings.max_request_megabytes * 1e6)
        self._app = Guard(
            create_app(self.service, settings, lambda: self._missing),
            self._meters,
            token=read_token(settings),
            most_bytes=most_bytes,
            seconds=settings.timeout_seconds,
            access_log=settings.access_log,
            has_proxies=has_proxies,
        )
        if not has_proxies:
            self._listener = Listener(self._app, address, settings.timeout_seconds, most_bytes)
            await self._listener.open()

    async def __del__(self) -> None:
        """What Serve awaits before it stops a replica."""
        if self._listener:
            await self._listener.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def _follow(self) -> None:
        """Keep up with the registry and with the number of replicas, for ever."""
        while True:
            try:
                await self._look()
            except Exception as error:  # MLflow or a replica is away: what is loaded goes on, and we look again
                log.warning("cannot look for new versions: %s", last_line(error))
            seconds = self._settings.poll_seconds
            await asyncio.sleep(min(seconds, 0.5) if self._missing else seconds)

    async def _look(self) -> None:
        stopped = await self._count_replicas()
        champions: Champions = await self._registry.champions.remote()
        began = time.monotonic()
        await self.service.refresh(champions)
        if self.service.champions != champions.proven:
            await self._registry.confirm.remote(self.service.champions)
        if time.monotonic() - began > _SOON:  # replicas have started meanwhile
            stopped = await self._count_replicas()
        self._missing = stopped + [str(model) for model in self.service.not_served(champions)]

    async def _count_replicas(self) -> list[str]:
        """Tell the stages how many replicas they have; deployments that have none."""
        running = await asyncio.to_thread(_running_replicas)
        for name, stage in self._deployments.items():
            stage.replicas = running.get(name, stage.replicas)
        return [name for name in self._deployments if running.get(name, 1) < 1]


def _running_replicas() -> dict[str, int]:
    """The number of running replicas of each deployment of our application."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    if application is None:
        return {}
    return {name: status.replica_states.get("RUNNING", 0) for name, status in application.deployments.items()}


def generator_deployment(model: str) -> str:
    """The deployment's name of a registered generator."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", model.removeprefix("raygan-"))
    # What is replaced might have told it from another.
    return name if name in model else f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
