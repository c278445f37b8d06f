"""The gateway's own port under real clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest

from raygan.benchmarks.servers import free_port
from raygan.errors import RayganError
from raygan.serve.listener import Address, Listener
from raygan.serve.metrics import NoMetrics
from raygan.serve.middleware import GatewayMiddleware


def answering(body: bytes, wait: asyncio.Event | None = None):
    """An application with one answer, given once the event is set."""

    async def application(scope, receive, send):
        if wait is not None:
            await wait.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return application


def test_a_closing_listener_answers_requests_in_progress_and_takes_no_others():
    async def run():
        address, go_on = Address("127.0.0.1", free_port()), asyncio.Event()
        listener = Listener(answering(b"late", go_on), address)
        await listener.open()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address.port}") as client:
            asked = asyncio.ensure_future(client.get("/"))
            await asyncio.sleep(0.2)
            ending = asyncio.ensure_future(listener.close())
            await asyncio.sleep(0.2)
            assert not ending.done()
            go_on.set()
            assert (await asked).content == b"late"
            await ending
        async with httpx.AsyncClient() as other:
            with pytest.raises(httpx.ConnectError):
                await other.get(f"http://127.0.0.1:{address.port}/")

    asyncio.run(run())


def test_gateways_on_one_machine_share_the_port_and_survivors_keep_it():
    async def run():
        address = Address("127.0.0.1", free_port())
        first, second = Listener(answering(b"1"), address), Listener(answering(b"2"), address)
        await first.open()
        await second.open()
        assert await _answers(address, 40) == {b"1", b"2"}
        await first.close()
        assert await _answers(address, 10) == {b"2"}
        await second.close()

    asyncio.run(run())


async def _answers(address: Address, times: int) -> set[bytes]:
    """The answers to requests, each on a new connection."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as client:
        return {(await client.get(f"http://127.0.0.1:{address.port}/")).content for _ in range(times)}


def test_a_request_that_outlasts_the_shutdown_gets_503():
    async def run():
        address, never = Address("127.0.0.1", free_port()), asyncio.Event()
        options = {"token": None, "max_bytes": 1000, "seconds": 60.0, "access_log": False}
        listener = Listener(
            GatewayMiddleware(answering(b"", never), NoMetrics(), **options), address, shutdown_seconds=1
        )
        await listener.open()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address.port}") as client:
            asked = asyncio.ensure_future(client.get("/"))
            await asyncio.sleep(0.2)
            await listener.close()
            answer = await asked
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_complete_head_is_closed(monkeypatch, sent):
    monkeypatch.setattr("raygan.serve.listener.HEAD_SECONDS", 0.3)
    assert asyncio.run(_hears(sent)) == b""


def test_an_endless_head_is_rejected():
    heard = asyncio.run(_hears(b"GET / HTTP/1.1\r\nX: " + b"a" * 10**6))
    assert heard.startswith(b"HTTP/1.1 431 ")


def test_large_bodies_and_many_requests_on_a_connection_are_not_taken_for_an_endless_head():
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"b" * 100_000
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert asyncio.run(_hears(request * 3 + last)).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("endless", [b"t: " + b"a" * 100 + b"\r\n", b"t" * 100])
def test_trailers_of_a_chunked_body_are_limited(monkeypatch, endless):
    monkeypatch.setattr("raygan.serve.listener.FRAMING_BYTES", 10_000)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    assert asyncio.run(_hears(head + endless * 10_000, max_bytes=1000)) == b""


def test_a_chunked_body_with_trailers_is_accepted():
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = head + b"1\r\na\r\n" * 1000 + b"0\r\nExpires: never\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert asyncio.run(_hears(request * 3 + last)).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("wish", ["keep-alive", "close"])
def test_a_client_that_is_still_sending_learns_that_its_body_is_too_large(monkeypatch, wish):
    monkeypatch.setattr("raygan.serve.listener.LINGER_SECONDS", 0.5)
    options = {"token": None, "max_bytes": 1000, "seconds": 60.0, "access_log": False}
    middleware = GatewayMiddleware(reading, NoMetrics(), **options)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: {wish}\r\nContent-Length: 100000000\r\n\r\n".encode()
    heard = asyncio.run(_hears(head + b"b" * 5_000_000, app=middleware, max_bytes=1000, pause=0.2))
    assert heard.startswith(b"HTTP/1.1 413 ")
    assert b'"status": 413' in heard


def test_the_missing_rest_of_a_body_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("raygan.serve.listener.LINGER_SECONDS", 0.3)
    heard = asyncio.run(_hears(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", app=answering(b"ok")))
    assert heard.startswith(b"HTTP/1.1 200 ")


def test_a_connection_survives_a_body_that_was_too_large():
    options = {"token": None, "max_bytes": 1000, "seconds": 60.0, "access_log": False}
    middleware = GatewayMiddleware(reading, NoMetrics(), **options)
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"b" * 5000
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    heard = asyncio.run(_hears(first + last, app=middleware))
    assert [heard.count(status) for status in (b"HTTP/1.1 413 ", b"HTTP/1.1 200 ")] == [1, 1]


@pytest.mark.parametrize("request_head", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n"])
def test_the_work_for_a_disconnected_client_is_cancelled(request_head):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def working(scope, receive, send):
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def run():
        address = Address("127.0.0.1", free_port())
        options = {"token": None, "max_bytes": 1000, "seconds": 60.0, "access_log": False}
        listener = Listener(GatewayMiddleware(working, NoMetrics(), **options), address)
        await listener.open()
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request_head + b"Host: x\r\n\r\nabc"[: None if b"POST" in request_head else -3])
        await asyncio.wait_for(begun.wait(), 5)
        writer.close()
        await asyncio.wait_for(cancelled.wait(), 5)
        await listener.close()

    asyncio.run(run())


async def _hears(sent: bytes, *, app=None, pause: float = 0.0, **options) -> bytes:
    """A listener's answer to these bytes until it closes the connection. pause: seconds before reading the answer."""
    address = Address("127.0.0.1", free_port())
    listener = Listener(app or reading, address, **options)
    await listener.open()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    await asyncio.sleep(pause)
    heard = bytearray()
    with contextlib.suppress(ConnectionResetError):  # if it closes with unread input
        while part := await asyncio.wait_for(reader.read(2**16), 10):
            heard += part
    writer.close()
    await listener.close()
    return bytes(heard)


async def reading(scope, receive, send):
    """An application that reads the body before it answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RayganError, match=f"port {port} of 127.0.0.1: Address already in use"):
            asyncio.run(Listener(answering(b""), Address("127.0.0.1", port)).open())
