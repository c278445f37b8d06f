"""The door: what happens to every request before and after its route.

In this order: a request id (the client's, if it is a plain one), the token, the limit on requests under way, the limit
on the body's bytes, the route within its time, and for whatever it raises an answer without internals; then security
headers, one line of JSON in the access log, and the request's metrics. HEAD is GET without the body. Plain ASGI, since
every request passes through it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raygan.serve.batching import Busy, Died
from raygan.serve.metrics import Meters
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: Paths that are answered without the token: whether we live, and the page that asks for it.
_OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz", "/openapi.json")

#: Paths that take uploads; elsewhere a body is a few parameters.
_UPLOAD_PATHS = ("/v1/classify",)
_PARAMETER_BYTES = 64_000

#: Requests under way at a time, and those of them that upload, whose bodies lie in memory and on disk meanwhile.
MOST_REQUESTS, _MOST_UPLOADING = 1000, 128

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


#: What a server finds in a request's scope, to call when the client has gone before it was answered.
LEAVE = "raygan.leave"


class TooLarge(Exception):  # noqa: N818 - the client's doing, not a fault of the program
    """The body has more bytes than the limit that is given."""


def as_problem(error: Exception) -> Problem:
    """The answer to whatever a route raises; what nobody foresaw is recorded, and told to nobody."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TooLarge):
        limit = error.args[0]
        text = f"{limit / 1e6:g} MB" if limit >= 1e6 else f"{limit / 1e3:g} kB"
        return Problem(413, f"the request has more than {text}")
    if isinstance(error, Busy):
        return unavailable("too many images are being asked for at the moment", error.seconds)
    if isinstance(error, Died | asyncio.TimeoutError):
        return unavailable("the answer took too long", 2)
    log.error("a request failed", exc_info=error)
    return Problem(500, "this is our fault, and it is recorded")


class Guard:
    """An ASGI application around another.

    token: that requests must bear; None asks for none. most_bytes: of a body. seconds: that a request may take.
    has_proxies: Serve's are before this; they put the request's id into the answer, and cancel what a client has left.
    """

    def __init__(
        self,
        app: ASGIApp,
        meters: Meters,
        *,
        token: str | None,
        most_bytes: int,
        seconds: float,
        access_log: bool,
        has_proxies: bool = False,
    ):
        self._app, self._meters = app, meters
        self._token = token.encode() if token else None
        self._most_bytes, self._seconds, self._access_log = most_bytes, seconds, access_log
        self.has_proxies = has_proxies
        self._under_way, self._uploading = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def trusts(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request bears the token, or none is asked for."""
        if self._token is None:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    def most_bytes(self, path: str) -> int:
        """Bytes that a body may have."""
        return self._most_bytes if path in _UPLOAD_PATHS else min(_PARAMETER_BYTES, self._most_bytes)

    @contextmanager
    def admitted(self, path: str) -> Iterator[None]:
        """A request's time under way. Raises Busy if there are too many; what an operator looks at is always let in."""
        uploads = path in _UPLOAD_PATHS
        full = self._under_way >= MOST_REQUESTS or (uploads and self._uploading >= _MOST_UPLOADING)
        if full and not _is_open(path):
            self._meters.count("rejected", stage="gateway")
            raise Busy(1)
        self._under_way += 1
        self._uploading += uploads
        try:
            yield
        finally:
            self._under_way -= 1
            self._uploading -= uploads


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith("/pages/")


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self._guard, self._receive, self._send = guard, receive, send
        self._method: str = scope["method"]
        self._scope = {**scope, "method": "GET"} if self._method == "HEAD" else scope
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"")
        self.id = given.decode() if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)
        self._status, self._bytes_in, self._bytes_out = 0, 0, 0
        self._most_bytes = guard.most_bytes(scope["path"])
        self._withheld, self._reading, self._left = False, False, False
        self._trusted = guard.trusts(self._headers)
        state: MutableMapping[str, Any] = self._scope.setdefault("state", {})
        state["request_id"] = self.id
        state["trusted"] = self._trusted
        self._asked = scope

    async def run(self) -> None:
        self._task = asyncio.current_task()
        began = time.perf_counter()
        self._asked[LEAVE] = self._leave
        try:
            await self._answer()
        finally:
            del self._asked[LEAVE]  # which refers to the scope again
            self._record(time.perf_counter() - began)

    def _leave(self) -> None:
        """The client has gone: nobody needs the answer."""
        if self._task is not None and not self._status:
            self._left = True
            self._task.cancel()

    async def _answer(self) -> None:
        try:
            if not self._trusted and not _is_open(self._scope["path"]):
                raise Problem(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
            if self._declared_bytes() > self._most_bytes:
                raise TooLarge(self._most_bytes)
            with self._guard.admitted(self._scope["path"]):
                route = self._guard._app(self._scope, self._counted_receive, self._send_on)
                await asyncio.wait_for(route, self._guard._seconds)
            if self._withheld:
                self._withheld = False
                raise TooLarge(self._most_bytes)
        except asyncio.CancelledError:
            if self._guard.has_proxies:  # nobody awaits the answer: a replica that ends lets its requests finish before
                raise
            # The server ends and waits no longer. Nobody awaits this but the server, which would answer 500.
            if not self._status and not self._left:
                await self._say(unavailable("the service is being stopped", 2))
        except Exception as error:
            if self._status:  # answered already, by the application's own handler, or cut short
                return
            late = isinstance(error, asyncio.TimeoutError) and self._reading
            await self._say(Problem(408, "the request's body did not come in time") if late else as_problem(error))

    async def _say(self, problem: Problem) -> None:
        await problem.response(self.id)(self._scope, self._receive, self._send_on)

    def _declared_bytes(self) -> int:
        try:
            return int(self._headers.get(b"content-length", b"0"))
        except ValueError:
            return 0

    async def _counted_receive(self) -> Message:
        self._reading = True
        message = await self._receive()
        self._reading = False
        self._bytes_in += len(message.get("body", b""))
        if self._bytes_in > self._most_bytes:
            raise TooLarge(self._most_bytes)
        return message

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # The route may take TooLarge for a body that can't be read.
            self._withheld = message["status"] == 400 and self._bytes_in > self._most_bytes
        if self._withheld:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", []))
            if not self._guard.has_proxies:
                headers.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": [*headers, *_SECURITY]}
        elif self._method == "HEAD":
            message = {**message, "body": b""}
        else:
            self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _record(self, seconds: float) -> None:
        route = getattr(self._scope.get("route"), "path", "other")
        status = str(self._status or 499)
        self._guard._meters.count("requests", route=route, status=status)
        self._guard._meters.observe("request_seconds", seconds, route=route)
        if self._guard._access_log:
            # The query holds seeds and labels, no secrets: a token travels in a header.
            line = {
                "time": round(time.time(), 3),
                "id": self.id,
                "client": (self._scope.get("client") or ("",))[0],
                "method": self._method,
                "path": self._scope["path"][:200],
                "query": self._scope.get("query_string", b"").decode("latin-1")[:200],
                "status": int(status),
                "milliseconds": round(seconds * 1000, 1),
                "bytes": self._bytes_out,
            }
            # Not by print: Serve makes log records of that, which are no JSON and wait in a buffer.
            os.write(1, json.dumps(line).encode() + b"\n")
