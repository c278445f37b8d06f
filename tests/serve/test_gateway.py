"""The gateway's deployment without Serve: what Serve asks of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray import serve

from raygan.errors import ConfigurationError
from raygan.serve.app import serving_host
from raygan.serve.gateway import GatewayDeployment
from raygan.serve.messages import Champions
from raygan.serve.settings import ServeSettings


class Handle:
    """A handle to a deployment whose methods all do the same."""

    def __init__(self, call):
        self._method = SimpleNamespace(remote=call)

    def options(self, **_):
        return self

    def __getattr__(self, name):
        return self._method


async def test_a_gateway_that_no_longer_follows_the_registry_fails_its_health_check(monkeypatch):
    application = SimpleNamespace(deployments={})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"raygan": application}))
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="raygan"))
    broken, ended = asyncio.Event(), asyncio.Event()

    async def answer(*_):
        if broken.is_set():
            ended.set()
            raise asyncio.CancelledError  # whatever ends the task
        return Champions()

    settings = ServeSettings(storage="unused", tracking_uri=None, poll_seconds=0.05)
    gateway = GatewayDeployment.__new__(GatewayDeployment)  # as Serve makes it: its __init__ is a coroutine
    await gateway.__init__(settings, Handle(answer), Handle(answer), "127.0.0.1")
    gateway.check_health()
    broken.set()
    async with asyncio.timeout(240):
        await ended.wait()
    await asyncio.sleep(0.1)
    with pytest.raises(RuntimeError, match="no longer follows the registry"):
        gateway.check_health()


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
