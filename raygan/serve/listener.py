"""The gateway's own port: uvicorn in the gateway's event loop, in place of Serve's proxies.

A proxy parses a request and passes it to the gateway in Serve's messages, and the answer back likewise, which costs as
much as everything the gateway does itself. Gateways on one machine share the port (SO_REUSEPORT): the kernel spreads
connections over them, and over the survivors when one dies.
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

# Undocumented, like the attributes and hooks that `_Protocol` and `_Server` override. A public replacement would be
# uvicorn settings for the size and time limits of a request's head and body.
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raygan.errors import RayganError
from raygan.serve.middleware import DISCONNECT

#: Seconds that a connection may idle between requests.
_KEEP_ALIVE = 75

#: Maximum bytes of a request line with headers, and seconds for them to arrive.
HEAD_BYTES, HEAD_SECONDS = 64 * 2**10, 20.0

#: Bytes of a body beside its content: chunk lengths and trailers.
FRAMING_BYTES = 2**20

#: Seconds for a client that is still sending to read the answer before the connection is cut.
LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class Address:
    """Where a gateway listens."""

    host: str
    port: int


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits: on its own it keeps incomplete requests forever and in any amount."""

    #: Maximum size of a request after its head.
    max_bytes = 2**25

    #: Bytes of the incoming head; None once it is complete and the body is coming.
    _head: int | None = 0
    _body = 0
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_linger_timer()
        disconnect = self.cycle and not self.cycle.response_complete and dict(self.cycle.scope).get(DISCONNECT)
        super().connection_lost(exc)
        if callable(disconnect):
            disconnect()

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
            if self._body > self.max_bytes + FRAMING_BYTES:
                self._refuse_body()
        elif self._head > HEAD_BYTES:
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self.hang_up()
        elif self._head and self._head_timer is None:
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # trailers of a chunked body are not headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head, self._body = None, 0
        self._stop_head_timer()
        super().on_headers_complete()
        self.cycle.transport = _AnswerTransport(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._head = 0
        self._stop_linger_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head is None and self.cycle.response_complete and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def hang_up(self) -> None:
        """Close the connection once the client has had time to read the answer.

        Closing with unread input would reset the connection.
        """
        if self._refused:
            return
        if self._head == 0:
            self.transport.close()
            return
        self._refused = True
        self.transport.write_eof()
        self._stop_linger_timer()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _refuse_body(self) -> None:
        if self.cycle.response_complete:
            self._refused = True  # ignore the rest; the linger timer is running
        else:
            self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_linger_timer(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None


class _AnswerTransport:
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

    Args:
        app: the application.
        address: where to listen.
        shutdown_seconds: time for requests in progress to finish on `close`.
        max_bytes: maximum size of a request body.
    """

    def __init__(self, app: ASGIApp, address: Address, shutdown_seconds: float = 30.0, max_bytes: int = 2**25):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._address = address
        config = uvicorn.Config(
            app,
            http=type("_LimitedProtocol", (_Protocol,), {"max_bytes": max_bytes}),
            ws="none",
            lifespan="off",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(shutdown_seconds),
        )
        self._server = _Server(config)
        self._serving: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Start taking requests. Raises RayganError if the address isn't available."""
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
        """Stop taking requests, and finish those in progress."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
