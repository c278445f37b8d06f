"""The gateway's own port: uvicorn in the gateway's event loop, in place of Serve's proxies.

A request that comes through one of Serve's proxies is parsed there, goes to the gateway in messages of Serve's and back
the same way, which costs as much as all that the gateway does itself. Gateways of one machine share the port
(SO_REUSEPORT): the kernel shares connections out between them, and to those that are left when one has died.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raygan.errors import RayganError
from raygan.serve.middleware import LEAVE

#: Seconds that a connection may wait for its next request.
_KEEP_ALIVE = 75

#: Bytes that a request's line and headers may have, and seconds that they may take to come.
_HEAD_BYTES, _HEAD_SECONDS = 64 * 2**10, 20.0

#: Bytes of a body beyond those of its content: lengths of chunks, and what follows the last one.
_FRAMING_BYTES = 2**20

#: Seconds in which a client that is still sending may hear the answer, before the connection is cut.
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class Address:
    """Where a gateway listens."""

    host: str
    port: int


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself keeps what comes before a request is complete, for ever and in any amount.

    most_bytes: of a request after its head.
    """

    most_bytes = 2**25

    #: Bytes of the head that is coming; None when it is complete, and the body comes.
    _head: int | None = 0
    _body = 0
    _refused = False
    _patience: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        self._stay()
        leave = self.cycle and not self.cycle.response_complete and dict(self.cycle.scope).get(LEAVE)
        super().connection_lost(exc)
        if callable(leave):
            leave()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head is not None:
            self._head += len(data)
        else:
            self._body += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._head is None:
            if self._body > self.most_bytes + _FRAMING_BYTES:
                self._refuse_body()
        elif self._head > _HEAD_BYTES:
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self.hang_up()
        elif self._head and self._patience is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # what follows a chunked body in the form of headers is none
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head, self._body = None, 0
        self._have_head()
        super().on_headers_complete()
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._head = 0
        self._stay()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head is None and self.cycle.response_complete and self._lingering is None:
            self._lingering = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def hang_up(self) -> None:
        """Close the connection, but not before the client has heard what was said.

        Closed while there is something unread, it would be reset.
        """
        if self._refused:
            return
        if self._head == 0:
            self.transport.close()
            return
        self._refused = True
        self.transport.write_eof()
        self._stay()
        self._lingering = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _refuse_body(self) -> None:
        if self.cycle.response_complete:
            self._refused = True  # the rest is not looked at, and its time runs
        else:
            self.transport.close()

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _have_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stay(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None


class _Answering:
    """The transport as uvicorn's answers see it, which close it as soon as they are complete."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: _Protocol):
        self._protocol = protocol
        self.write, self.is_closing = protocol.transport.write, protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.hang_up()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray, whose process this is."""
        yield


class Listener:
    """An ASGI application at an address, from `open` to `close`.

    ending_seconds: that requests under way may take when it is closed. most_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, address: Address, ending_seconds: float = 30.0, most_bytes: int = 2**25):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._address = address
        config = uvicorn.Config(
            app,
            http=type("_LimitedProtocol", (_Protocol,), {"most_bytes": most_bytes}),
            ws="none",
            lifespan="off",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(ending_seconds),
        )
        self._server = _Server(config)
        self._serving: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Take requests from now on. Raises RayganError if the address can't be had."""
        family = socket.AF_INET6 if ":" in self._address.host else socket.AF_INET
        own = socket.socket(family, socket.SOCK_STREAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            own.bind((self._address.host, self._address.port))
        except OSError as error:
            raise RayganError(f"port {self._address.port} of {self._address.host}: {error.strerror}") from None
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[own]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Take no more requests, and finish those that are under way."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
