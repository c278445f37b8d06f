"""The deployments, as Ray Serve runs them: thin shells around the other modules.

`GatewayDeployment` holds handles to the others and is the only one that speaks HTTP; its stages (`stages`) reach the
replicas of `ModelsDeployment`. Every process of the service imports this module, so it doesn't import torch: replicas
do when they start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raygan.errors import RayganError, last_line
from raygan.serve import haproxy, logs
from raygan.serve.api import create_app
from raygan.serve.auth import check_token, read_token
from raygan.serve.calls import NotLoaded
from raygan.serve.cors import with_cors
from raygan.serve.messages import Champions, ClassifyRequest, Drawn, ModelVersion, Predictions, SampleRequest
from raygan.serve.metrics import RayMetrics
from raygan.serve.middleware import GatewayMiddleware
from raygan.serve.model_store import Fetch, Files, Finish, ModelStore
from raygan.serve.rehearsal import rehearse
from raygan.serve.scaling import REQUESTS, UnderWay
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings
from raygan.serve.stages import HandleStage

I = TypeVar("I")  # noqa: E741 (a request)
A = TypeVar("A")

log = logging.getLogger("raygan.serve")

#: Seconds that a starting gateway waits for the models before it answers without them.
_START_SECONDS = 60.0

#: Bytes of a file in one message, of which gRPC takes up to 4 MB by default.
_PIECE_BYTES = 2_000_000

#: The deployment of generators and classifiers.
MODELS = "Models"

#: States of a deployment whose replicas have gone, or are still to come, because of the load.
_ASLEEP = ("HEALTHY", "UPSCALING", "DOWNSCALING")


class ModelStoreDeployment(ModelStore):
    """The model store under Serve."""

    async def pieces(self, model: ModelVersion) -> AsyncIterator[tuple[str, bytes]]:
        """`files` in pieces, each with its file's name: Serve limits the size of messages.

        A reference into Ray's object store would be short, but what leaves by gRPC stays in that store until this
        process ends.
        """
        files = await asyncio.to_thread(self.files, model)
        for name, content in files.items():
            for start in range(0, len(content) or 1, _PIECE_BYTES):
                yield name, content[start : start + _PIECE_BYTES]


def fetch_through(store: DeploymentHandle) -> Fetch:
    """The function with which replicas get a model's files."""
    streaming = store.pieces.options(stream=True)

    async def fetch(model: ModelVersion) -> Files:
        files: defaultdict[str, bytearray] = defaultdict(bytearray)
        async for name, piece in streaming.remote(model):
            files[name] += piece
        return {name: bytes(files.pop(name)) for name in list(files)}

    return fetch


def finish_through(store: DeploymentHandle) -> Finish:
    """The function with which replicas say that they have survived loading a version."""

    async def finish(model: ModelVersion, tried: bool) -> None:
        await store.finish.remote(model, tried)

    return finish


class ModelsDeployment:
    """Generators and the classifier under Serve. Ready once each champion is loaded or has failed to load."""

    async def __init__(self, settings: ServeSettings, store: DeploymentHandle):  # type: ignore[misc]
        from raygan.serve.replicas import Replica

        logs.configure()
        self._under_way = UnderWay()
        self._replica = Replica(settings, fetch_through(store), finish_through(store))
        # Nothing wrong with one champion may keep the replica from serving other versions.
        try:
            champions: Champions = await store.champions.remote()
            proven = (champions.proven or Champions()).models
            for model in champions.models:
                # At the first start there is nothing to lose yet; later, one bad champion must not cost all labels.
                self._replica.rehearse = rehearse if proven and model not in proven else None
                try:
                    await self._replica.prepare(model)
                except Exception as error:
                    log.warning("cannot load %s: %s", model, last_line(error))
        except Exception as error:
            log.warning("cannot ask for the models: %s", last_line(error))
        self._replica.rehearse = rehearse

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self._replica.prepare(model)

    async def draw(self, model: ModelVersion, requests: list[SampleRequest]) -> list[tuple[Drawn, float] | Exception]:
        return await self._each(self._replica.draw, model, requests)

    async def classify(
        self, model: ModelVersion, requests: list[ClassifyRequest]
    ) -> list[tuple[Predictions, float] | Exception]:
        return await self._each(self._replica.classify, model, requests)

    async def _each(
        self, method: Callable[[ModelVersion, I], Awaitable[A]], model: ModelVersion, requests: Sequence[I]
    ) -> list[A | Exception]:
        """The answers to a call's requests; one that fails doesn't spoil the others."""
        self._under_way.add(len(requests))
        try:
            answers = await asyncio.gather(*(method(model, each) for each in requests), return_exceptions=True)
        finally:
            self._under_way.add(-len(requests))
        return [_portable(each) if isinstance(each, BaseException) else each for each in answers]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: the load by which `scaling` decides."""
        return {REQUESTS: self._under_way.average()}


def _portable(error: BaseException) -> Exception:
    """An error that survives the way to the gateway; the log has its traceback."""
    return error if isinstance(error, NotLoaded) else RuntimeError(last_line(error))


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
        self._cold, self._stopped = False, True

        def stage(name: str, method: str) -> HandleStage[Any, Any]:
            return HandleStage(name, models, method, metrics, settings, lambda: self._cold)

        self._stages = stage("generator", "draw"), stage("classifier", "classify")
        self._service = Service(
            *self._stages,
            metrics,
            max_draws=settings.max_draws,
            seconds=settings.timeout_seconds,
            exists=store.exists.remote,
        )
        # Apart: while MLflow hangs, replicas wake and tokens are rotated all the same.
        followed = {"the replicas": self._follow_replicas, "the registry": self._follow_registry}
        self._following = [asyncio.ensure_future(self._follow(*each)) for each in followed.items()]
        # Serve sends requests once this returns; a model that fails to load must not delay the others.
        deadline = time.monotonic() + _START_SECONDS
        while (self._stopped or self._service.is_loading()) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        buffered = not haproxy.passes_on_pressure()
        self._middleware = GatewayMiddleware(
            create_app(self._service, settings, self._not_ready, buffered=buffered),
            metrics,
            token=read_token(settings),
            max_bytes=int(settings.max_request_megabytes * 1e6),
            max_sending=settings.max_sending_megabytes * 1e6,
            seconds=settings.timeout_seconds,
            access_log=settings.access_log,
            has_proxies=True,
            buffered=buffered,
        )
        self._app = with_cors(self._middleware, settings.cors_origins)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for an application that exists only after `__init__`."""
        return self._app

    def check_health(self) -> None:
        """Serve replaces a gateway that raises here."""
        if any(task.done() for task in self._following):
            raise RuntimeError("the gateway no longer follows the registry")

    def _not_ready(self) -> list[str]:
        """What keeps a started service from being ready: one label must not take the others away."""
        return self._missing() if self._service.serves_nothing() else []

    def _missing(self) -> list[str]:
        wanted = self._service.wanted
        lacking = ["models"] if wanted is None else [str(model) for model in self._service.not_served(wanted)]
        return [MODELS, *lacking] if self._stopped else lacking

    async def _follow(self, what: str, look: Callable[[], Awaitable[None]]) -> None:
        """Look again and again, forever."""
        while True:
            try:
                await look()
            except Exception as error:  # something is away: go on with what is loaded, and look again
                log.warning("cannot follow %s: %s", what, last_line(error))
            seconds = self._settings.poll_seconds
            soon = self._stopped or self._cold or self._service.should_try()
            await asyncio.sleep(min(seconds, 0.5) if soon else seconds)

    async def _follow_replicas(self) -> None:
        """Keep up with the token's file and the number of replicas."""
        self._reload_token()
        running, self._cold = await asyncio.to_thread(_replicas)
        self._stopped = not running and not self._cold
        for stage in self._stages:
            stage.calls.replicas = running
            stage.calls.observe()
        self._service.metrics.observe("not_served", len(self._missing()))

    async def _follow_registry(self) -> None:
        """Keep up with the registry."""
        champions: Champions = await self._store.champions.remote()
        await self._service.refresh(champions)
        if self._service.champions != champions.proven:
            await self._store.confirm.remote(self._service.champions)

    def _reload_token(self) -> None:
        """Read a rotated token; while its file is being replaced, the former one stays."""
        if self._settings.token_file and self._middleware:
            try:
                self._middleware.set_token(read_token(self._settings))
            except RayganError as error:
                log.warning("the former token stays: %s", error)


def _replicas() -> tuple[int, bool]:
    """How many replicas of the models are running, and whether there are none because Serve has scaled them to zero."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    deployment = application.deployments.get(MODELS) if application else None
    if deployment is None:  # it is being redeployed
        return 1, False
    running = deployment.replica_states.get("RUNNING", 0)
    return running, not running and deployment.status in _ASLEEP
