"""What happens to every request: token, limits, time, headers, log."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace

import fastapi
import httpx
import psutil
import pytest

from raygan.serve.calls import Busy
from raygan.serve.headers import SECURITY_HEADERS
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.middleware import GatewayMiddleware
from tests.helpers import wait_until
from tests.serve.conftest import Running
from tests.serve.local import CAT, NoMetrics, RecordingMetrics, local_service


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_token_is_required_if_one_is_set(models):
    local = await local_service(models, Champions({"cat": CAT}, None), token="s3cret")  # noqa: S106
    async with client_of(local.app) as client:
        for given in (None, b"Bearer wrong", b"Basic s3cret", b"Bearer \xc3\xa9"):
            headers = {"Authorization": given} if given else {}
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer s3cret"})).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/pages/app.js"):
            assert (await client.get(path)).status_code == 200


async def test_paths_are_the_same_below_a_route_prefix(models):
    """As Serve calls an application with one: the path includes it."""
    local = await local_service(models, Champions({"cat": CAT}, None), token="s3cret")  # noqa: S106
    transport = httpx.ASGITransport(local.app, root_path="/faces")
    async with httpx.AsyncClient(transport=transport, base_url="http://test/faces/") as client:
        assert [(await client.get(path)).status_code for path in ("readyz", "v1/models")] == [200, 401]
        slashless = await client.get("http://test/faces")
        assert (slashless.status_code, slashless.headers["Location"]) == (307, "/faces/")
        files = {"images": ("a.png", b" " * 100_000)}
        answer = await client.post("v1/classify", files=files, headers={"Authorization": "Bearer s3cret"})
    assert answer.status_code != 413  # a parameter's limit would be 64 kB


async def test_an_endless_body_is_too_large_whatever_the_route_makes_of_it(models):
    """FastAPI itself answers 400 to any error while it reads JSON."""
    local = await local_service(models, Champions({"cat": CAT}, None), max_request_megabytes=0.01)

    async def body():
        for _ in range(100):
            yield b" " * 1000

    async with client_of(local.app) as client:
        answer = await client.post("/v1/sample", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


async def test_answers_carry_security_headers_and_an_id_and_leave_a_line_in_the_log(models, capfd):
    local = await local_service(models, Champions({"cat": CAT}, None), access_log=True)
    async with client_of(local.app) as client:
        page = await client.get("/", headers={"X-Request-ID": "mine-1"})
        assert page.headers["X-Request-ID"] == "mine-1"
        assert {name: page.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "Access-Control-Allow-Origin" not in page.headers
        odd = await client.get("/v1/sample?label=cat&n=1", headers={"X-Request-ID": "a b\t<script>"})
        assert "<" not in odd.headers["X-Request-ID"]
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    lines = [line for line in said if "path" in line]  # what else goes on has lines, too
    assert (lines[0]["id"], lines[0]["path"], lines[0]["status"]) == ("mine-1", "/", 200)
    assert lines[1]["milliseconds"] > 0
    assert lines[0]["client"] == "127.0.0.1"


async def test_slow_full_and_broken_services_answer_without_internals():
    async def slow(scope, receive, send):
        await asyncio.sleep(5)

    async def full(scope, receive, send):
        raise Busy(7)

    async def broken(scope, receive, send):
        raise RuntimeError("/secret/path")

    for app, status, after in ((slow, 503, "2"), (full, 503, "7"), (broken, 500, None)):
        seconds = 0.05 if app is slow else 60
        middleware = GatewayMiddleware(app, NoMetrics(), token=None, max_bytes=10, seconds=seconds, access_log=False)
        async with client_of(middleware) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, after)
        assert "secret" not in answer.text


async def test_bodies_of_parameters_are_limited_and_so_are_the_answers_to_wrong_ones(models):
    local = await local_service(models, Champions({"cat": CAT}, None))
    async with client_of(local.app) as client:
        huge = await client.post("/v1/sample", json={f"key{i}": i for i in range(200_000)})
        assert (huge.status_code, len(huge.content) < 1000) == (413, True)
        wrong = await client.post("/v1/sample", json={f"{i}" * 200: i for i in range(50)})
        assert (wrong.status_code, len(wrong.json()["errors"])) == (422, 10)
        assert len(wrong.content) < 5000
        assert wrong.json()["detail"].endswith("; and 41 more")  # the label is missing too


async def test_requests_in_progress_are_limited_except_for_operators(monkeypatch):
    monkeypatch.setattr("raygan.serve.middleware.MAX_REQUESTS", 2)
    go_on = asyncio.Event()

    async def waiting(scope, receive, send):
        if scope["path"] != "/healthz":
            await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    metrics = RecordingMetrics()
    middleware = GatewayMiddleware(waiting, metrics, token=None, max_bytes=10, seconds=60, access_log=False)
    async with client_of(middleware) as client:
        asked = [asyncio.ensure_future(client.get("/v1/sample")) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await client.get("/v1/sample")
        assert (third.status_code, third.headers["Retry-After"]) == (503, "1")
        assert metrics.counts["rejected", "gateway"] == 1
        assert (await client.get("/healthz")).status_code == 200
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]
        assert (await client.get("/v1/sample")).status_code == 200


def large_answers(size, **options):
    """An application whose every answer has `size` bytes, the same ones, in the middleware."""
    body = bytes(size)

    async def app(scope, receive, send):
        await fastapi.Response(body)(scope, receive, send)

    options = {"token": None, "max_bytes": 10, "seconds": 5, "access_log": False, **options}
    return GatewayMiddleware(app, NoMetrics(), **options)


def test_clients_that_do_not_read_hold_little_memory_and_not_for_long(monkeypatch):
    monkeypatch.setattr("raygan.serve.middleware._WRITE_SECONDS", 3.0)
    monkeypatch.setattr("raygan.serve.middleware._SLOWEST", 1e12)

    async def start():
        return SimpleNamespace(app=large_answers(20_000_000, max_sending=500e6))

    with Running(start) as server:
        httpx.get(server.address)
        before = psutil.Process().memory_info().rss
        port, sockets = int(server.address.rpartition(":")[2]), []
        for _ in range(20):
            sockets.append(socket.create_connection(("127.0.0.1", port)))
            sockets[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            sockets[-1].recv(1)
        assert psutil.Process().memory_info().rss - before < 50e6  # 400 MB wait to be read
        assert httpx.get(server.address).status_code == 503  # more than half of the limit for one client
        wait_until(lambda: httpx.get(server.address).status_code == 200, "the answers are given up")
        for each in sockets:
            each.close()


async def test_an_answer_goes_out_whole_however_slowly_it_is_read(monkeypatch):
    monkeypatch.setattr("raygan.serve.middleware._WRITE_SECONDS", 0.3)
    received, sent = bytearray(), []

    async def send(message):
        await asyncio.sleep(0.07)
        sent.append(message.get("status"))
        received.extend(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("a", 1)}
    application = large_answers(1_000_000, seconds=1)  # the time limit is for making the answer
    await application(dict(scope), None, send)
    assert (sent[0], len(received)) == (200, 1_000_000)


async def test_where_answers_are_buffered_they_count_until_they_are_read():
    """Behind Serve's Python proxies, which say so by a disconnect at the end."""
    application = large_answers(200_000, max_sending=300_000, seconds=0.05, buffered=True)

    async def ask(is_read):
        statuses = []

        async def receive():
            await is_read.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("a", 1)}
        await application(scope, receive, send)
        return statuses

    first, now = asyncio.Event(), asyncio.Event()
    now.set()
    reading = asyncio.ensure_future(ask(first))
    await asyncio.sleep(0.2)  # longer than the time limit, which is for making the answer
    assert not reading.done()
    assert await ask(now) == [503]
    first.set()
    assert await reading == [200]
    assert await ask(now) == [200]


@pytest.mark.parametrize(("has_proxies", "status", "says"), [(True, "499", []), (False, "503", [503])])
async def test_a_cancelled_request_is_dropped_behind_proxies_and_otherwise_gets_503(has_proxies, status, says):
    async def waiting(scope, receive, send):
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message.get("status"))

    metrics, sent = RecordingMetrics(), []
    options = {"token": None, "max_bytes": 10, "seconds": 5, "access_log": False, "has_proxies": has_proxies}
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.ensure_future(GatewayMiddleware(waiting, metrics, **options)(scope, None, send))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), sent[:1]) == (has_proxies, says)
    assert metrics.counts["requests", "other", status] == 1


async def test_a_body_that_does_not_arrive_in_time_is_the_clients_fault(models):
    local = await local_service(models, Champions({"cat": CAT}, None), timeout_seconds=0.3)

    async def body():
        yield b'{"label":'
        await asyncio.sleep(2)

    async with client_of(local.app) as client:
        answer = await client.post("/v1/sample", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 408


async def test_only_clients_with_the_token_learn_what_is_not_ready(models):
    local = await local_service(models, Champions({"cat": CAT}, None), token="s3cret")  # noqa: S106
    local.missing.append("raygan-generator-cat version 3")
    async with client_of(local.app) as client:
        asked = [await client.get("/readyz", headers=h) for h in ({}, {"Authorization": "Bearer s3cret"})]
        assert [answer.status_code for answer in asked] == [503, 503]
        assert ["cat version 3" in answer.text for answer in asked] == [False, True]
        local.missing.clear()
        broken = ModelVersion("raygan-generator-cat", "4")
        local.service.wanted = Champions({"cat": CAT, "dog": broken}, None)
        asked = [await client.get("/readyz", headers=h) for h in ({}, {"Authorization": "Bearer s3cret"})]
        assert [answer.status_code for answer in asked] == [200, 200]
        assert [answer.json()["not_served"] for answer in asked] == [[], [str(broken)]]
        local.service.wanted = None  # the registry hasn't answered
        unknown = await client.get("/v1/models", headers={"Authorization": "Bearer s3cret"})
    assert (unknown.status_code, unknown.headers["Retry-After"]) == (503, "2")


async def test_another_token_counts_at_once():
    middleware = large_answers(10, token="old")  # noqa: S106
    async with client_of(middleware) as client:
        statuses = []
        for current in ("old", "new"):
            middleware.set_token(current)
            asked = [await client.get("/v1/x", headers={"Authorization": f"Bearer {t}"}) for t in ("old", "new")]
            statuses.append([answer.status_code for answer in asked])
    assert statuses == [[200, 401], [401, 200]]
