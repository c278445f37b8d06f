"""Cross-origin requests: which websites' pages may use the API."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from raygan.serve.headers import SAMPLE_HEADERS


def with_cors(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Let pages of these origins use the application; preflight requests need no token."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-Request-ID", "traceparent"),
        expose_headers=("ETag", "Retry-After", "X-Request-ID", *SAMPLE_HEADERS),
        max_age=86400,
    )
