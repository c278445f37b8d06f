"""What a request's headers ask for: a format (`Accept`), compression, and whether the client has the answer already.

An answer is determined by model version, seeds and parameters, and its entity tag is a hash of them. So a client that
revalidates costs no computing, and neither does HEAD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from isal import igzip
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from raygan import __version__
from raygan.serve.encode import MEDIA_TYPES
from raygan.serve.problems import Problem

F = TypeVar("F", bound=str)

#: Formats that lose detail, only for clients that clearly prefer them: browsers prefer WebP to `*/*` a little.
_LOSSY = ("webp", "jpeg")
_LOSS = 0.5

#: Smallest body in bytes that is worth compressing.
MIN_BYTES = 1000


def chosen_format(request: Request, formats: Sequence[F]) -> F:
    """The format that the client prefers.

    Args:
        request: with or without an Accept header.
        formats: keys of `encode.MEDIA_TYPES`, the service's own preference first.
    Raises:
        Problem: 406 if the client accepts none of them.
    """
    ranges = _ranges(",".join(request.headers.getlist("accept")))
    best = max(formats, key=lambda kind: _quality(ranges, MEDIA_TYPES[kind]) * (_LOSS if kind in _LOSSY else 1))
    if _quality(ranges, MEDIA_TYPES[best]) <= 0:
        raise Problem(406, f"the formats are {', '.join(MEDIA_TYPES[kind] for kind in formats)}")
    return best


def _ranges(header: str) -> dict[str, float]:
    """Accept's media ranges with their quality; everything is welcome without the header."""
    found: dict[str, float] = {}
    for part in header.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if name:
            try:
                found[name] = float(quality)
            except ValueError:
                found[name] = 0.0
    return found or {"*/*": 1.0}


def _quality(ranges: dict[str, float], media_type: str) -> float:
    """The quality of the most specific range that matches."""
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


class Caching:
    """How clients may keep the answer to a GET or HEAD request.

    Args:
        request: the request.
        seeded: whether the client gave the seeds; otherwise every answer is new.
        lasting: whether nothing but the query determines the answer: the version is pinned, and no verdict of the
            classifier in force is part of it.
        vary: request headers on which the answer depends.
    """

    def __init__(self, request: Request, *, seeded: bool, lasting: bool, vary: Sequence[str]):
        self._request, self._seeded, self._lasting, self._vary = request, seeded, lasting, vary

    def headers(self, *parts: object) -> dict[str, str]:
        """The answer's headers. parts: all that determines it."""
        vary = {"Vary": ", ".join(self._vary)} if self._vary else {}
        if not self._seeded:
            return {"Cache-Control": "no-store", **vary}
        text = "\n".join(map(str, (__version__, *parts)))
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        scope = "private" if "authorization" in self._request.headers else "public"
        lasting = f"{scope}, max-age=31536000, immutable" if self._lasting else "no-cache"
        return {"ETag": tag, "Cache-Control": lasting, **vary}

    def shortcut(self, headers: dict[str, str], media_type: str) -> Response | None:
        """The answer if nothing needs to be computed: 304, or the headers for HEAD. headers: those of the answer."""
        asked = {tag.strip().removeprefix("W/") for tag in self._request.headers.get("if-none-match", "").split(",")}
        if "ETag" in headers and asked & {headers["ETag"], "*"}:
            return Response(status_code=304, headers=headers)
        if is_head(self._request):
            response = Response(headers=headers, media_type=media_type)
            del response.headers["content-length"]  # nobody knows it yet
            return response
        return None


def is_head(request: Request) -> bool:
    """Whether the client asks for headers only; the middleware shows routes a GET."""
    return bool(getattr(request.state, "head", False))


def takes_gzip(request: Request) -> bool:
    """Whether the client accepts compressed answers."""
    coding = _ranges(request.headers.get("accept-encoding", "identity"))
    return coding.get("gzip", coding.get("*", 0.0)) > 0


def gzipped(body: bytes) -> bytes:
    """A body in gzip's format, if that is worth it: the same body always gives the same bytes."""
    return igzip.compress(body, 1, mtime=0) if len(body) >= MIN_BYTES else body


class GzipForText(GZipMiddleware):
    """Compresses pages, descriptions and lists for clients that accept it; routes that draw decide for themselves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        draws = scope["type"] == "http" and scope["path"].endswith(("/v1/sample", "/v1/stream", "/v1/interpolate"))
        await (self.app if draws else super().__call__)(scope, receive, send)
