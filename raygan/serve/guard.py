"""The door: what happens to every request before and after its route.

In this order: a request id (the client's, if it is a plain one), the token, the limit on the body's bytes, the
route within its time, and for whatever it raises an answer without internals; then security headers, one line of
JSON in the access log, and the request's metrics. Plain ASGI, since every request passes through it.
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
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raygan.serve.meters import Meters
from raygan.serve.problems import Problem, unavailable
from raygan.serve.stages import Busy, Died

log = logging.getLogger("raygan.serve")

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: Paths that are answered without the token: whether we live, and the page that asks for it.
_OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz", "/openapi.json")

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


class TooLarge(Exception):  # noqa: N818 - the client's doing, not a fault of the program
    """The body has more bytes than the limit that is given."""


def as_problem(error: Exception) -> Problem:
    """The answer to whatever a route raises; what nobody foresaw is recorded, and told to nobody."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TooLarge):
        limit = f"{error.args[0] / 1e6:g} MB"
        return Problem(413, f"the request has more than {limit}", headers={"Connection": "close"})
    if isinstance(error, Busy):
        return unavailable("too many images are being asked for at the moment", error.seconds)
    if isinstance(error, Died | asyncio.TimeoutError):
        return unavailable("the answer took too long", 2)
    log.error("a request failed", exc_info=error)
    return Problem(500, "this is our fault, and it is recorded")


class Guard:
    """An ASGI application around another.

    token: that requests must bear; None asks for none. most_bytes: of a body. seconds: that a request may take.
    tells_id: put the request's id into the answer, where nothing before this does.
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
        tells_id: bool = True,
    ):
        self._app, self._meters = app, meters
        self._token = token.encode() if token else None
        self._most_bytes, self._seconds, self._access_log = most_bytes, seconds, access_log
        self.tells_id = tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def allows(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether the request bears the token, or needs none."""
        if self._token is None or scope["path"] in _OPEN_PATHS or scope["path"].startswith("/pages/"):
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"")
        self.id = given.decode() if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)
        self._status, self._bytes_in, self._bytes_out = 0, 0, 0
        self._withheld = False
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = self.id

    async def run(self) -> None:
        began = time.perf_counter()
        try:
            await self._answer()
        finally:
            self._record(time.perf_counter() - began)

    async def _answer(self) -> None:
        try:
            if not self._guard.allows(self._scope, self._headers):
                raise Problem(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
            if self._declared_bytes() > self._guard._most_bytes:
                raise TooLarge(self._guard._most_bytes)
            route = self._guard._app(self._scope, self._counted_receive, self._send_on)
            await asyncio.wait_for(route, self._guard._seconds)
            if self._withheld:
                self._withheld = False
                raise TooLarge(self._guard._most_bytes)
        except asyncio.CancelledError:
            # The server ends and waits no longer. Nobody awaits this but the server, which would answer 500.
            if not self._status:
                await unavailable("the service is being stopped", 2).response(self.id)(
                    self._scope, self._receive, self._send_on
                )
        except Exception as error:
            if self._status:  # answered already, by the application's own handler, or cut short
                return
            await as_problem(error).response(self.id)(self._scope, self._receive, self._send_on)

    def _declared_bytes(self) -> int:
        try:
            return int(self._headers.get(b"content-length", b"0"))
        except ValueError:
            return 0

    async def _counted_receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        if self._bytes_in > self._guard._most_bytes:
            raise TooLarge(self._guard._most_bytes)
        return message

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # The route may take TooLarge for a body that can't be read.
            self._withheld = message["status"] == 400 and self._bytes_in > self._guard._most_bytes
        if self._withheld:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", []))
            if self._guard.tells_id:
                headers.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": [*headers, *_SECURITY]}
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
                "method": self._scope["method"],
                "path": self._scope["path"][:200],
                "query": self._scope.get("query_string", b"").decode("latin-1")[:200],
                "status": int(status),
                "milliseconds": round(seconds * 1000, 1),
                "bytes": self._bytes_out,
            }
            # Not by print: Serve makes log records of that, which are no JSON and wait in a buffer.
            os.write(1, json.dumps(line).encode() + b"\n")
