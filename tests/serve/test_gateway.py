"""The gateway's deployment without Serve: what Serve asks of it."""

from __future__ import annotations

import asyncio
import pickle
import ssl
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from ray import serve

from raygan.errors import ConfigurationError, RayganError
from raygan.serve.api import is_draining
from raygan.serve.app import serving_host
from raygan.serve.gateway import GatewayDeployment, ModelsDeployment
from raygan.serve.messages import Champions, Drawn, SampleRequest
from raygan.serve.problems import as_problem
from raygan.serve.settings import ServeSettings
from tests.serve.local import CAT, DOG, make_certificate


class Handle:
    """A handle to a deployment whose methods all do the same."""

    def __init__(self, call):
        self.remote = call

    def options(self, **_):
        return self

    def __getattr__(self, name):
        return self


def serves(monkeypatch, **deployments):
    """Let Serve say this about deployments; returns what it looks up, for changes."""
    states = {"raygan": SimpleNamespace(deployments=deployments)}
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=states))
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="raygan"))
    return deployments


async def start(deployment, *arguments):
    """A deployment as Serve makes it: its __init__ is a coroutine."""
    made = deployment.__new__(deployment)
    await made.__init__(*arguments)
    return made


SETTINGS = ServeSettings(storage="unused", tracking_uri=None, poll_seconds=0.05)


async def test_a_gateway_that_no_longer_follows_the_registry_fails_its_health_check(monkeypatch):
    serves(monkeypatch)
    broken, ended = asyncio.Event(), asyncio.Event()

    async def answer(*_):
        if broken.is_set():
            ended.set()
            raise asyncio.CancelledError  # whatever ends the task
        return Champions()

    gateway = await start(GatewayDeployment, SETTINGS, Handle(answer), Handle(answer), "127.0.0.1")
    gateway.check_health()
    broken.set()
    async with asyncio.timeout(240):
        await ended.wait()
    await asyncio.sleep(0.1)
    with pytest.raises(RuntimeError, match="no longer follows the registry"):
        gateway.check_health()


async def test_a_champion_that_can_not_be_loaded_does_not_hurry_the_gateway(monkeypatch):
    serves(monkeypatch)
    asked = []

    async def registry(*about):
        if not about:
            asked.append(1)
            return Champions({"cat": CAT})

    async def models(model):
        raise RuntimeError("damaged")

    settings = SETTINGS.model_copy(update={"poll_seconds": 60.0})
    await start(GatewayDeployment, settings, Handle(models), Handle(registry), "127.0.0.1")
    await asyncio.sleep(2)
    assert len(asked) == 1


async def test_replicas_wake_and_tokens_are_rotated_while_mlflow_hangs(monkeypatch, tmp_path):
    deployments = serves(monkeypatch, Models=SimpleNamespace(replica_states={}, status="HEALTHY"))
    hangs, token = asyncio.Event(), tmp_path / "token"
    token.write_text("old")

    async def registry(*_):
        if hangs.is_set():
            await asyncio.Event().wait()
        return Champions({"cat": CAT})

    async def models(model, requests=None):
        if requests is None:
            return {"image_size": 4}
        return [(Drawn(np.zeros((len(each), 4, 4, 3), np.uint8)), 0.0) for each in requests]

    settings = SETTINGS.model_copy(update={"token_file": str(token)})
    gateway = await start(GatewayDeployment, settings, Handle(models), Handle(registry), "127.0.0.1")
    transport = httpx.ASGITransport(gateway.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=240) as client:

        async def status(token):
            headers = {"Authorization": f"Bearer {token}"}
            return (await client.get("/v1/sample?label=cat&n=1", headers=headers)).status_code

        assert [await status(token) for token in ("old", "new")] == [503, 401]  # nobody is awake
        hangs.set()
        await asyncio.sleep(0.2)
        token.write_text("")  # as it is being written
        await asyncio.sleep(0.2)
        assert await status("old") == 503
        token.write_text("new")
        deployments["Models"].replica_states["RUNNING"] = 1
        async with asyncio.timeout(240):
            while [await status(token) for token in ("old", "new")] != [401, 200]:
                await asyncio.sleep(0.05)


async def test_a_replica_that_can_not_load_a_version_now_says_so(monkeypatch):
    async def away(*_):
        raise RayganError("the artifact store does not answer")

    replica = await start(ModelsDeployment, SETTINGS, Handle(away))  # and it starts all the same
    (answer,) = await replica.draw(CAT, [SampleRequest("cat", (7,))])
    problem = as_problem(pickle.loads(pickle.dumps(answer)))  # noqa: S301
    assert (problem.status, problem.headers) == (503, {"Retry-After": "5"})


@pytest.mark.parametrize(
    ("proven", "rehearsed"),
    [(Champions(), set()), (Champions({"cat": CAT}), {DOG}), (Champions({"cat": CAT, "dog": DOG}), set())],
)
async def test_a_replica_that_starts_rehearses_what_was_never_served(monkeypatch, proven, rehearsed):
    """Except at the first start, when there is nothing to lose and the wait would be long."""
    loads = {}

    class Replica:
        rehearse = None

        def __init__(self, *_):
            pass

        async def prepare(self, model):
            loads[model] = self.rehearse

    async def champions(*_):
        return Champions({"cat": CAT, "dog": DOG}, proven=proven)

    monkeypatch.setattr("raygan.serve.replicas.Replica", Replica)
    await start(ModelsDeployment, SETTINGS, Handle(champions))
    assert loads.keys() == {CAT, DOG}
    assert {model for model, rehearse in loads.items() if rehearse} == rehearsed


async def answering(status, **options):
    """A server that answers this to /-/healthz; returns its address."""

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % (status if head.startswith(b"GET /-/healthz ") else 404))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, **options)
    return server, server.sockets[0].getsockname()


@pytest.mark.parametrize("status", [200, 503])
async def test_a_server_that_is_being_drained_is_recognized_with_and_without_tls(tmp_path, status):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    for options in ({}, {"ssl": context}):
        server, address = await answering(status, **options)
        assert await is_draining(address) == (status == 503)
        server.close()
    assert not await is_draining(address)  # nobody listens


@pytest.mark.parametrize(
    ("details", "haproxy", "reason"),
    [
        ({"proxy_location": "EveryNode", "http_options": {"host": "::1", "ssl_certfile": "a.pem"}}, "0", None),
        ({"proxy_location": "EveryNode", "http_options": {"host": "::1", "ssl_certfile": "a.pem"}}, "1", "has no TLS"),
        ({"proxy_location": "Disabled", "http_options": {"host": "::1"}}, "0", "nothing listens"),
    ],
)
def test_what_the_ingress_would_ignore_is_refused(monkeypatch, details, haproxy, reason):
    client = SimpleNamespace(get_serve_details=lambda: details)
    # Private: what `serving_host` asks.
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: client)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", haproxy)
    if reason is None:
        assert serving_host() == "::1"
    else:
        with pytest.raises(ConfigurationError, match=reason):
            serving_host()
