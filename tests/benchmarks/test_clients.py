"""The client of the benchmarks and drills: what it sends, and how it reports answers and broken connections."""

import asyncio
import itertools
import socket
import threading

import pytest

from raygan.benchmarks.clients import Answer, Request, Tally, ask_once, keep_asking
from raygan.benchmarks.servers import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Seed: 7\r\n\r\nok"


@pytest.fixture
def listen():
    """A function that starts a server of raw bytes.

    Each list holds the answers on one connection, which is then cut. It returns the port and what was received.
    """
    sockets = []

    def start(*connections):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        received = []

        def serve():
            for answers in connections:
                connection, _ = listener.accept()
                with connection:
                    for answer in answers:
                        received.append(connection.recv(1 << 20))
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()[1], received

    yield start
    for each in sockets:
        each.close()


def test_an_answer_has_status_headers_body_and_time(listen):
    port, _ = listen([OK])
    answer = ask_once(port, Request("/"))
    assert (answer.status, answer.headers["x-seed"], answer.body) == (200, "7", b"ok")
    assert answer.seconds > 0


def test_hostile_paths_are_sent_as_they_are(listen):
    path = "/pages/..%2f..%2fetc?label=%00"
    port, received = listen([OK])
    ask_once(port, Request(path))
    assert received[0].startswith(f"GET {path} HTTP/1.1\r\n".encode())
    assert b"accept-encoding" not in received[0].lower()


def test_a_body_is_posted_with_its_type(listen):
    port, received = listen([OK])
    ask_once(port, Request("/", b"<svg/>", "image/svg+xml"))
    assert received[0].startswith(b"POST / HTTP/1.1\r\n")
    assert b"Content-Type: image/svg+xml\r\n" in received[0]


def test_nobody_listening_is_status_0():
    assert ask_once(free_port(), Request("/")).status == 0


def test_a_cut_connection_is_reported_and_not_retried(listen):
    """The second request goes out on the kept connection, which is cut; the third gets a new one."""
    port, received = listen([OK, b""], [OK])
    heard = []

    def hear(request, answer):
        heard.append(answer.status)
        return 0.0

    asyncio.run(keep_asking(port, itertools.repeat(Request("/"), 3), hear, lambda: False))
    assert heard == [200, 0, 200]
    assert len(received) == 3


def test_a_client_stops_when_told(listen):
    port, _ = listen([OK] * 9)
    heard = []

    def hear(request, answer):
        heard.append(answer.status)
        return 0.0

    asyncio.run(keep_asking(port, itertools.repeat(Request("/")), hear, lambda: len(heard) == 2))
    assert heard == [200, 200]


@pytest.mark.parametrize(
    ("status", "headers", "right", "dead", "counted", "pause"),
    [
        (200, {}, True, False, "right", 0.0),
        (200, {}, False, False, "wrong", 0.0),
        (500, {}, True, False, "wrong", 0.0),
        (503, {"Retry-After": "2"}, True, False, "turned_away", 2.0),
        (503, {}, True, False, "wrong", 0.0),
        (0, {}, True, False, "wrong", 0.0),
        (0, {}, True, True, "cut", 0.2),
    ],
)
def test_answers_are_counted_as_what_they_are(status, headers, right, dead, counted, pause):
    tally = Tally(gateway_is_dead=dead)
    assert tally.count(Request("/a"), Answer(status, headers, b"", 1.5), lambda: right) == pause
    numbers = {"right": tally.right, "turned_away": tally.turned_away, "cut": tally.cut, "wrong": len(tally.wrong)}
    assert [name for name, number in numbers.items() if number] == [counted]
    assert tally.slowest == 1.5
