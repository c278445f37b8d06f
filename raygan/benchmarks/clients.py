"""HTTP clients that measure and check servers, built on aiohttp and the same for every server.

A client keeps its connection open and sends one request at a time, as a browser or another service does. Clients share
the cores with the server they measure, so all servers must be measured with this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

#: Where all servers of the benchmarks and drills listen.
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Request:
    """A GET, or a POST if there is a body.

    Attributes:
        path: path and query, sent as they are.
        body: content of a POST.
        kind: content type of the body.
    """

    path: str
    body: bytes | None = None
    kind: str = "application/json"


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: HTTP status, or 0 if the connection was cut or refused.
        headers: by name, case-insensitive.
        seconds: from sending the request to the last byte of the answer.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Client:
    """One client of one server, to be used in an `async with` block."""

    def __init__(self, port: int):
        self._base = f"http://{HOST}:{port}"

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(middlewares=(_never_retry,), cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def ask(self, request: Request) -> Answer:
        """Send a request and wait for the whole answer. A broken connection is an answer, not an error."""
        method = "GET" if request.body is None else "POST"
        headers = {} if request.body is None else {"Content-Type": request.kind}
        began = time.perf_counter()
        try:
            async with self._session.request(
                method,
                URL(self._base + request.path, encoded=True),
                data=request.body,
                headers=headers,
                allow_redirects=False,
                skip_auto_headers=("Accept-Encoding",),
            ) as answer:
                body = await answer.read()
                return Answer(answer.status, answer.headers, body, time.perf_counter() - began)
        except (aiohttp.ClientError, OSError):
            return Answer(0, {}, b"", time.perf_counter() - began)


async def _never_retry(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Report every cut connection: aiohttp would silently retry a GET."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


def ask_once(port: int, request: Request) -> Answer:
    """Send one request on a connection of its own."""

    async def ask() -> Answer:
        async with Client(port) as client:
            return await client.ask(request)

    return asyncio.run(ask())


async def keep_asking(
    port: int,
    requests: Iterable[Request],
    heard: Callable[[Request, Answer], float],
    over: Callable[[], bool],
) -> None:
    """Send one request after another from one client.

    Args:
        port: the server's.
        requests: what to ask; may be endless.
        heard: receives each request and its answer, and returns how many seconds to pause.
        over: whether to stop; asked before each request.
    """
    async with Client(port) as client:
        for request in requests:
            if over():
                return
            pause = heard(request, await client.ask(request))
            if pause:
                await asyncio.sleep(pause)


@dataclass
class Tally:
    """Counts of a server's answers, right and wrong.

    Attributes:
        right: number of correct answers.
        turned_away: number of 503s with Retry-After.
        cut: number of connections cut or refused while there was no gateway.
        wrong: a line for each other answer.
        slowest: seconds that the slowest answer took.
        gateway_is_dead: whether connections may be cut or refused at the moment.
    """

    right: int = 0
    turned_away: int = 0
    cut: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    gateway_is_dead: bool = False

    def count(self, request: Request, answer: Answer, is_right: Callable[[], bool]) -> float:
        """Count one answer, and return how many seconds the server asks the client to wait."""
        self.slowest = max(self.slowest, answer.seconds)
        if answer.status == 200 and is_right():
            self.right += 1
        elif answer.status == 503 and "Retry-After" in answer.headers:
            self.turned_away += 1
            return float(answer.headers["Retry-After"])
        elif answer.status == 0 and self.gateway_is_dead:
            self.cut += 1
            return 0.2
        else:
            self.wrong.append(f"{request.path}: {answer.status} {answer.body[:200]!r}")
        return 0.0
