"""The service's log: one stream of JSON lines for requests and errors, in the gateway and in its replicas.

Every line of a request has its id and, if the client sent a `traceparent` (W3C Trace Context), its trace; they travel
with the request's messages to the replicas, and stand beside tracebacks too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class Origin:
    """The request that is being served. trace: its W3C trace id, or empty."""

    request_id: str = ""
    trace: str = ""

    def fields(self) -> dict[str, str]:
        """What a line of the log says about it."""
        named = {"id": self.request_id, "trace": self.trace}
        return {name: value for name, value in named.items() if value}


#: The request that the current task works for.
ORIGIN: ContextVar[Origin] = ContextVar("raygan_origin", default=Origin())  # noqa: B039 (frozen)


def trace_of(header: bytes) -> str:
    """The trace id in a `traceparent` header; empty if there is none, or it isn't well-formed."""
    found = _TRACEPARENT.fullmatch(header)
    return found[1].decode() if found and found[1].strip(b"0") else ""


def write(line: dict[str, Any]) -> None:
    """Write a line, if that is possible: a full disk must not cost an answer.

    Not print: Serve turns printed lines into buffered log records that aren't JSON.
    """
    with suppress(OSError):
        os.write(1, json.dumps({"time": round(time.time(), 3), **line}).encode() + b"\n")


class JsonHandler(logging.Handler):
    """Writes log records as lines of JSON, tracebacks included."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = {"level": record.levelname.lower(), **ORIGIN.get().fields(), "message": record.getMessage()}
            if record.exc_info and record.exc_info[0]:
                line["traceback"] = logging.Formatter().formatException(record.exc_info)
            write(line)
        except Exception:  # as logging itself does: no log line may break what it tells about
            self.handleError(record)


def configure() -> None:
    """Have this process's raygan loggers write lines of JSON, and only those."""
    logger = logging.getLogger("raygan")
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [JsonHandler()], False
