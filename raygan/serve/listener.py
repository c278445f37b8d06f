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

#: Seconds that a connection may wait for its next request.
_KEEP_ALIVE = 75

#: Bytes that a request's line and headers may have, and seconds that they may take to come.
_HEAD_BYTES, _HEAD_SECONDS = 64 * 2**10, 20.0

#: Seconds in which a client may hear that its head is too long, before the connection is cut.
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class Address:
    """Where a gateway listens."""

    host: str
    port: int


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself keeps what comes before a request is complete, for ever and in any amount."""

    #: Bytes of the head that is coming; None when it is complete, and the body comes.
    _head: int | None = 0
    _refused = False
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is None or self.transport.is_closing():
            return
        if self._head > _HEAD_BYTES:
            self._refused = True
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self.transport.write_eof()
            # Closed while there is something unread, the connection would be reset before the client has the answer.
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        elif self._head and self._patience is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head = None
        self._have_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _have_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray, whose process this is."""
        yield


class Listener:
    """An ASGI application at an address, from `open` to `close`.

    ending_seconds: that requests under way may take when it is closed.
    """

    def __init__(self, app: ASGIApp, address: Address, ending_seconds: float = 30.0):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._address = address
        config = uvicorn.Config(
            app,
            http=_Protocol,
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
