"""A small HTTP/1.1 client for measuring: it shares the server's cores, so it must cost next to nothing.

One connection for each client, kept open, one request at a time, as a person's browser or another service has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """status: 0 if the connection broke off. seconds: from the first byte out to the last byte in."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Connection:
    """A connection to one server, made when it is needed and again after it broke off."""

    def __init__(self, host: str, port: int):
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        """GET, or POST where there is a body. Never raises for a broken connection."""
        began = time.perf_counter()
        try:
            status, headers, content = await self._exchange(path, body, kind)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return Answer(0, {}, b"", time.perf_counter() - began)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, headers, content, time.perf_counter() - began)

    async def _exchange(self, path: str, body: bytes | None, kind: str) -> tuple[int, dict[str, str], bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        assert self._reader is not None  # noqa: S101 (for mypy)
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if body is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + (body or b""))
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        if "content-length" in headers:
            content = await self._reader.readexactly(int(headers["content-length"]))
        elif headers.get("connection", "").lower() == "close":
            content = await self._reader.read()
        else:
            content = await self._chunks(self._reader)
        return int(lines[0].split()[1]), headers, content

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readline()
        return b"".join(parts)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Tally:
    """What clients saw. seconds: of each answer with status 200."""

    wall: float = 0.0
    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        if answer.status == 200:
            self.seconds.append(answer.seconds)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the answers took at most; NaN if there were none."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def load(
    host: str, port: int, clients: int, seconds: float, request: Callable[[int, int], tuple[str, bytes | None]]
) -> Tally:
    """So many clients that ask as soon as they are answered. request: path and body of client i's k-th request."""
    tally = Tally()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = Connection(host, port)
        count = 0
        while time.perf_counter() < end:
            tally.add(await connection.ask(*request(number, count)))
            count += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    tally.wall = time.perf_counter() - began
    return tally
