"""The gateway's own port, asked by a real client."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest

from raygan.benchmarks.serve import free_port
from raygan.errors import RayganError
from raygan.serve.listener import Address, Listener
from raygan.serve.metrics import NoMeters
from raygan.serve.middleware import Guard


def answering(body: bytes, wait: asyncio.Event | None = None):
    """An application with one answer, given as soon as the event is set."""

    async def application(scope, receive, send):
        if wait is not None:
            await wait.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return application


def test_a_request_under_way_is_answered_and_none_is_taken_after_the_end():
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


def test_gateways_of_a_machine_share_the_port_and_one_that_ends_leaves_it_to_the_others():
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
    """What clients hear, each on a connection of its own."""
    heard = set()
    for _ in range(times):
        async with httpx.AsyncClient() as client:
            heard.add((await client.get(f"http://127.0.0.1:{address.port}/")).content)
    return heard


def test_what_outlasts_the_end_is_told_to_come_again():
    async def run():
        address, never = Address("127.0.0.1", free_port()), asyncio.Event()
        options = {"token": None, "most_bytes": 1000, "seconds": 60.0, "access_log": False}
        listener = Listener(Guard(answering(b"", never), NoMeters(), **options), address, ending_seconds=1)
        await listener.open()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address.port}") as client:
            asked = asyncio.ensure_future(client.get("/"))
            await asyncio.sleep(0.2)
            await listener.close()
            answer = await asked
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch, sent):
    monkeypatch.setattr("raygan.serve.listener._HEAD_SECONDS", 0.3)
    assert asyncio.run(_hears(sent)) == b""


def test_a_head_without_end_is_refused():
    heard = asyncio.run(_hears(b"GET / HTTP/1.1\r\nX: " + b"a" * 10**6))
    assert heard.startswith(b"HTTP/1.1 431 ")


def test_large_bodies_and_many_requests_on_a_connection_are_no_head_without_end():
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"b" * 100_000
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert asyncio.run(_hears(request * 3 + last)).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("endless", [b"t: " + b"a" * 100 + b"\r\n", b"t" * 100])
def test_what_follows_a_chunked_body_is_limited(monkeypatch, endless):
    monkeypatch.setattr("raygan.serve.listener._FRAMING_BYTES", 10_000)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    assert asyncio.run(_hears(head + endless * 10_000, most_bytes=1000)) == b""


def test_a_chunked_body_and_what_follows_it_are_taken():
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = head + b"1\r\na\r\n" * 1000 + b"0\r\nExpires: never\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert asyncio.run(_hears(request * 3 + last)).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("wish", ["keep-alive", "close"])
def test_a_client_that_is_still_sending_hears_that_its_body_is_too_large(monkeypatch, wish):
    monkeypatch.setattr("raygan.serve.listener._LINGER_SECONDS", 0.5)
    options = {"token": None, "most_bytes": 1000, "seconds": 60.0, "access_log": False}
    guard = Guard(reading, NoMeters(), **options)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: {wish}\r\nContent-Length: 100000000\r\n\r\n".encode()
    heard = asyncio.run(_hears(head + b"b" * 5_000_000, app=guard, most_bytes=1000, pause=0.2))
    assert heard.startswith(b"HTTP/1.1 413 ")
    assert b'"status": 413' in heard


def test_the_rest_of_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("raygan.serve.listener._LINGER_SECONDS", 0.3)
    heard = asyncio.run(_hears(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", app=answering(b"ok")))
    assert heard.startswith(b"HTTP/1.1 200 ")


def test_a_connection_goes_on_after_a_body_that_was_too_large():
    options = {"token": None, "most_bytes": 1000, "seconds": 60.0, "access_log": False}
    guard = Guard(reading, NoMeters(), **options)
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"b" * 5000
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    heard = asyncio.run(_hears(first + last, app=guard))
    assert [heard.count(status) for status in (b"HTTP/1.1 413 ", b"HTTP/1.1 200 ")] == [1, 1]


@pytest.mark.parametrize("request_head", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n"])
def test_nobody_works_for_a_client_that_has_gone(request_head):
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def working(scope, receive, send):
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            given_up.set()

    async def run():
        address = Address("127.0.0.1", free_port())
        options = {"token": None, "most_bytes": 1000, "seconds": 60.0, "access_log": False}
        listener = Listener(Guard(working, NoMeters(), **options), address)
        await listener.open()
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request_head + b"Host: x\r\n\r\nabc"[: None if b"POST" in request_head else -3])
        await asyncio.wait_for(begun.wait(), 5)
        writer.close()
        await asyncio.wait_for(given_up.wait(), 5)
        await listener.close()

    asyncio.run(run())


async def _hears(sent: bytes, *, app=None, pause: float = 0.0, **options) -> bytes:
    """What a listener says to these bytes until it closes the connection. pause: before it is listened to."""
    address = Address("127.0.0.1", free_port())
    listener = Listener(app or reading, address, **options)
    await listener.open()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    await asyncio.sleep(pause)
    heard = bytearray()
    with contextlib.suppress(ConnectionResetError):  # where it closes before it has read all
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


def test_a_port_that_is_taken_is_said():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RayganError, match=f"port {port} of 127.0.0.1: Address already in use"):
            asyncio.run(Listener(answering(b""), Address("127.0.0.1", port)).open())
