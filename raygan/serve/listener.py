"""The gateway's own port: uvicorn in the gateway's event loop, in place of Serve's proxies.

A request that comes through one of Serve's proxies is parsed there, goes to the gateway in messages of Serve's and back
the same way, which costs as much as all that the gateway does itself. Gateways of one machine share the port
(SO_REUSEPORT): the kernel shares connections out between them, and to those that are left when one has died.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from raygan.errors import RayganError

#: Seconds that a connection may wait for its next request.
_KEEP_ALIVE = 75

#: Seconds that requests under way may take when the gateway is stopped; Serve waits somewhat longer.
_ENDING = 15


@dataclass(frozen=True)
class Address:
    """Where a gateway listens."""

    host: str
    port: int


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray, whose process this is."""
        yield


class Listener:
    """An ASGI application at an address, from `open` to `close`."""

    def __init__(self, app: ASGIApp, address: Address):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._address = address
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_ENDING,
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
