"""What happens to every request before and after its route.

In this order: a request id (the client's, if it is plain text), the token, the limit on the body's size, the limit on
requests in progress, the route with its time limit, and if it raises, an error response that reveals no internals;
then security headers, a line of JSON in the access log, and the request's metrics. HEAD is GET without the body. Plain
ASGI, since every request passes through it.

Large answers go out in pieces, so the server buffers only one piece per slow client. The rest counts against a limit
over all answers (half of it per client) and has a deadline generous enough for slow lines. Answers that would exceed
the limit become 503. Serve's Python proxies take answers whole and keep them in memory: behind them, an answer counts
until its client has read it or gone.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raygan.serve import logs
from raygan.serve.calls import Busy
from raygan.serve.headers import SECURITY_HEADERS
from raygan.serve.metrics import Metrics
from raygan.serve.problems import Problem, TooLarge, as_problem, unavailable

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: Paths open without a token: health, and the page that asks for the token.
_OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz", "/openapi.json")

#: Paths that take uploads; elsewhere a body holds a few parameters.
_UPLOAD_PATHS = ("/v1/classify",)
_PARAMETER_BYTES = 64_000

#: Maximum number of requests in progress, and of uploads among them, whose bodies stay in memory and on disk meanwhile.
MAX_REQUESTS, _MAX_UPLOADING = 1000, 128

#: Bytes of an answer that are handed to the server at once; one up to twice the size goes out whole.
_PIECE_BYTES = 2**16

#: Time limit to send an answer: these seconds, plus its size at these bytes per second; likewise per line of a stream.
_WRITE_SECONDS, _SLOWEST = 20.0, 50_000

_SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class GatewayMiddleware:
    """An ASGI application around another.

    Args:
        app: the inner application.
        metrics: where counts and times go.
        token: bearer token that requests must carry; None for an open service.
        max_bytes: maximum size of an upload's body.
        seconds: time limit per request until its answer begins.
        max_sending: maximum bytes of all answers that clients have yet to read.
        access_log: whether to print a line per request.
        has_proxies: Serve's proxies are in front; they add the request id to the answer, and cancel requests whose
            clients have disconnected.
        buffered: whether they buffer whole answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        token: str | None,
        max_bytes: int,
        seconds: float,
        max_sending: float = 256e6,
        access_log: bool,
        has_proxies: bool = False,
        buffered: bool = False,
    ):
        self.app, self.metrics, self.seconds = app, metrics, seconds
        self.access_log, self.has_proxies, self.buffered = access_log, has_proxies, buffered
        self.set_token(token)
        self._max_bytes = max_bytes
        self._in_progress, self._uploading = 0, 0
        self._max_sending, self._sending = max_sending, Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def set_token(self, token: str | None) -> None:
        """Require another token from now on, or none."""
        self._token = token.encode() if token else None

    def trusts(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request carries the token, or needs none."""
        if self._token is None:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    def max_bytes(self, path: str) -> int:
        """Maximum size of a body at this path."""
        return self._max_bytes if path in _UPLOAD_PATHS else min(_PARAMETER_BYTES, self._max_bytes)

    @contextmanager
    def admitted(self, path: str) -> Iterator[None]:
        """Counts a request in progress. Raises Busy if there are too many, except for operators' paths."""
        uploads = path in _UPLOAD_PATHS
        full = self._in_progress >= MAX_REQUESTS or (uploads and self._uploading >= _MAX_UPLOADING)
        if full and not _is_open(path):
            self.metrics.count("rejected", stage="gateway")
            raise Busy(1)
        self._in_progress += 1
        self._uploading += uploads
        try:
            yield
        finally:
            self._in_progress -= 1
            self._uploading -= uploads

    def may_send(self, client: str, size: int) -> bool:
        """Count an answer's bytes as being sent, unless there are too many; `sent` takes them off."""
        limit = self._max_sending
        if self._sending.total() + size > limit or (self._sending[client] + size > limit / 2 and self._sending[client]):
            self.metrics.count("rejected", stage="answers")
            return False
        self._sending[client] += size
        return True

    def sent(self, client: str, size: int) -> None:
        """An answer was sent or abandoned."""
        self._sending[client] -= size
        if not self._sending[client]:
            del self._sending[client]


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith("/pages/")


class _Exchange:
    """One request and its answer."""

    def __init__(self, middleware: GatewayMiddleware, scope: Scope, receive: Receive, send: Send):
        self._middleware, self._receive, self._send = middleware, receive, send
        self._method: str = scope["method"]
        self._scope = {**scope, "method": "GET"} if self._method == "HEAD" else scope
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"")
        self.id = given.decode() if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)
        self._status, self._bytes_in, self._bytes_out = 0, 0, 0
        self._path = scope["path"].removeprefix(scope.get("root_path", ""))  # below Serve's route_prefix
        self._max_bytes = middleware.max_bytes(self._path)
        self._reading = False
        self._withheld: Exception | None = None
        self._client, self._sending = (scope.get("client") or ("",))[0], 0
        self._limit: asyncio.Timeout | None = None
        self._trusted = middleware.trusts(self._headers)
        state: MutableMapping[str, Any] = self._scope.setdefault("state", {})
        state["request_id"] = self.id
        self._origin = logs.Origin(self.id, logs.trace_of(self._headers.get(b"traceparent", b"")))
        state["head"] = self._method == "HEAD"
        state["trusted"] = self._trusted

    async def run(self) -> None:
        logs.ORIGIN.set(self._origin)
        began = time.perf_counter()
        try:
            await self._answer()
        finally:
            if self._sending:
                self._middleware.sent(self._client, self._sending)
            self._record(time.perf_counter() - began)

    async def _answer(self) -> None:
        middleware = self._middleware
        try:
            if not self._path:  # a route_prefix without the slash, below which the page's relative addresses are
                raise Problem(307, "add a trailing slash", headers={"Location": f"{self._scope['root_path']}/"})
            if not self._trusted and not _is_open(self._path):
                raise Problem(401, "a valid bearer token is required", headers={"WWW-Authenticate": "Bearer"})
            if self._declared_bytes() > self._max_bytes:
                raise TooLarge(self._max_bytes)
            with middleware.admitted(self._path):
                await self._route()
            if self._withheld:
                instead, self._withheld = self._withheld, None
                raise instead
        except asyncio.CancelledError:
            if middleware.has_proxies:  # the client left; a replica that stops lets its requests finish first
                raise
            # The server is stopping and no longer waits. Only it awaits this task, and it would answer 500.
            if not self._status:
                await self._say(unavailable("the service is stopping", 2))
        except Exception as error:
            if self._status:  # already answered by the application's own handler, or cut short
                return
            late = isinstance(error, TimeoutError) and self._reading
            await self._say(Problem(408, "the request body did not arrive in time") if late else as_problem(error))

    async def _route(self) -> None:
        try:
            async with asyncio.timeout(self._middleware.seconds) as self._limit:
                await self._middleware.app(self._scope, self._counted_receive, self._send_on)
        finally:
            self._limit = None

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
        if self._bytes_in > self._max_bytes:
            raise TooLarge(self._max_bytes)
        return message

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._withheld = self._objection(message)
        if self._withheld:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", []))
            if not self._middleware.has_proxies:
                headers.append((b"x-request-id", self.id.encode()))
            await self._send({**message, "headers": [*headers, *_SECURITY]})
        else:
            await self._send_body(message)

    def _objection(self, start: Message) -> Exception | None:
        """An error to send instead of the route's response, if any."""
        if start["status"] == 400 and self._bytes_in > self._max_bytes:
            return TooLarge(self._max_bytes)  # the route mistook it for an unreadable body
        length = next((value for name, value in start.get("headers", []) if name == b"content-length"), b"0")
        size = int(length) if self._method != "HEAD" else 0
        if size > 2 * _PIECE_BYTES:
            if not self._middleware.may_send(self._client, size):
                return Busy(2)
            self._sending = size
        return None

    async def _send_body(self, message: Message) -> None:
        body = message.get("body", b"") if self._method != "HEAD" else b""
        self._bytes_out += len(body)
        if self._limit is not None:
            ends = asyncio.get_running_loop().time() + _WRITE_SECONDS + len(body) / _SLOWEST
            if message.get("more_body"):  # the next part has to be made first
                ends += self._middleware.seconds
            self._limit.reschedule(ends)
        view = memoryview(body)
        while len(view) > 2 * _PIECE_BYTES:
            await self._send({"type": "http.response.body", "body": view[:_PIECE_BYTES].tobytes(), "more_body": True})
            view = view[_PIECE_BYTES:]
        await self._send({**message, "body": view.tobytes() if len(view) < len(body) else body})
        if self._middleware.buffered and not message.get("more_body") and self._bytes_out > 2 * _PIECE_BYTES:
            await self._until_read()

    async def _until_read(self) -> None:
        """Wait for the end of the exchange, which servers report as a disconnect once the whole answer is out."""
        if self._limit is not None:
            self._limit.reschedule(None)  # the proxy keeps the answer for as long as the connection lasts
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _record(self, seconds: float) -> None:
        route = getattr(self._scope.get("route"), "path", "other")
        status = str(self._status or 499)
        self._middleware.metrics.count("requests", route=route, status=status)
        self._middleware.metrics.observe("request_seconds", seconds, route=route)
        if self._middleware.access_log:
            # The query holds seeds and labels, no secrets: the token travels in a header.
            line = {
                **self._origin.fields(),
                "client": (self._scope.get("client") or ("",))[0],
                "method": self._method,
                "path": self._scope["path"][:200],
                "query": self._scope.get("query_string", b"").decode("latin-1")[:200],
                "status": int(status),
                "milliseconds": round(seconds * 1000, 1),
                "bytes": self._bytes_out,
            }
            logs.write(line)
