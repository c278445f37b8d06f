"""Errors as RFC 9457 problem documents: what is wrong, in which field, and nothing about internals.

`as_problem` turns whatever a route raises into its answer; `add_error_handlers` has FastAPI's own errors leave as
problem documents too.
"""

from __future__ import annotations

import http
import json
import logging
from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from raygan.serve.calls import Busy, NotLoaded, ReplicaDied

log = logging.getLogger("raygan.serve")

MEDIA_TYPE = "application/problem+json"

#: In place of pydantic's words for a body that isn't read as a JSON object, and FastAPI's for text in place of a file.
_PLAINER = {
    "Input should be a valid dictionary or object to extract fields from": (
        "must be a JSON object, sent with Content-Type: application/json"
    ),
    "Value error, Expected UploadFile, received: <class 'str'>": "must be a file, as in curl -F images=@photo.jpg",
}

#: Maximum number of mistakes in an answer, and of characters of a parameter's name: clients choose both.
_MAX_ERRORS, _NAME_CHARACTERS = 10, 100


class Problem(Exception):  # noqa: N818 - an answer, not a fault of the program
    """An answer other than the requested one.

    Args:
        status: of HTTP.
        detail: one sentence for a person; the field's name is put before it.
        field: the parameter at fault.
        headers: of the answer.
        more: further members of the document.
    """

    def __init__(
        self, status: int, detail: str, *, field: str | None = None, headers: dict[str, str] | None = None, **more: Any
    ):
        super().__init__(detail)
        self.status, self.field, self.headers = status, field, headers or {}
        self.detail = f"{field}: {detail}" if field else detail
        self.more = more

    def response(self, request_id: str = "") -> Response:
        """The HTTP response with the problem document."""
        return Response(json.dumps(self.document(request_id)), self.status, self.headers, media_type=MEDIA_TYPE)

    def document(self, request_id: str = "") -> dict[str, Any]:
        """The problem document, JSON-ready."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field:
            content["field"] = self.field
        if request_id:
            content["request_id"] = request_id
        return {**content, **self.more}


class TooLarge(Exception):  # noqa: N818 - the client's fault, not the program's
    """The body has more bytes than the limit.

    Attributes:
        limit: in bytes.
    """

    def __init__(self, limit: int):
        super().__init__(limit)
        self.limit = limit


def unavailable(detail: str, seconds: int) -> Problem:
    """503 with Retry-After."""
    return Problem(503, detail, headers={"Retry-After": str(seconds)})


def as_problem(error: Exception) -> Problem:
    """The answer to whatever a route raises. An unforeseen error is logged, and clients learn nothing about it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TooLarge):
        limit = f"{error.limit / 1e6:g} MB" if error.limit >= 1e6 else f"{error.limit / 1e3:g} kB"
        return Problem(413, f"the request body exceeds {limit}")
    if isinstance(error, Busy):
        return unavailable("too many requests at the moment", error.seconds)
    if isinstance(error, NotLoaded):
        return unavailable("the model can't be loaded at the moment", 5)
    if isinstance(error, ReplicaDied | TimeoutError):
        return unavailable("the answer took too long", 2)
    log.error("a request failed", exc_info=error)
    return Problem(500, "internal error; it has been logged")


def add_error_handlers(app: fastapi.FastAPI) -> None:
    """Have every error leave the application as a problem document."""

    async def raised(request: fastapi.Request, error: Exception) -> Response:
        return as_problem(error).response(_request_id(request))

    async def invalid(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 (for mypy)
        return _validation_problem(error).response(_request_id(request))

    async def rejected(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 (for mypy)
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:  # each route knows only its own method
            matching = [r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
            methods = {method for route in matching for method in route.methods or ()}
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return Problem(error.status_code, str(error.detail), headers=headers).response(_request_id(request))

    for kind in (Problem, Busy, ReplicaDied, TooLarge, TimeoutError, Exception):
        app.add_exception_handler(kind, raised)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, rejected)


def _request_id(request: fastapi.Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def _validation_problem(error: RequestValidationError) -> Problem:
    """422 that lists the first mistakes."""
    mistakes = error.errors()
    said = [(_field(mistake), str(mistake["msg"])) for mistake in mistakes[:_MAX_ERRORS]]
    listed = [{"field": field, "message": _PLAINER.get(message, message)} for field, message in said]
    detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in listed)
    if len(mistakes) > _MAX_ERRORS:
        detail += f"; and {len(mistakes) - _MAX_ERRORS} more"
    return Problem(422, detail, errors=listed)


def _field(mistake: dict[str, Any]) -> str:
    """A parameter's name without its place (query, body); "body" for the body itself."""
    location = mistake["loc"]
    if mistake["type"] == "json_invalid":  # "body" is followed by the position in its text
        location = location[:1]
    parts = [str(part) for part in location[1:]] or [str(location[0])]
    return ".".join(parts)[:_NAME_CHARACTERS]
