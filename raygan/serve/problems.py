"""Errors as RFC 9457 problem documents: what is wrong, in which field, and nothing of the inside."""

from __future__ import annotations

import http
import json
from typing import Any

from fastapi.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - an answer, not a fault of the program
    """An answer that isn't what was asked for.

    detail: one sentence for a person; the field's name is put before it. more: further members of the document.
    """

    def __init__(
        self, status: int, detail: str, *, field: str | None = None, headers: dict[str, str] | None = None, **more: Any
    ):
        super().__init__(detail)
        self.status, self.field, self.headers = status, field, headers or {}
        self.detail = f"{field}: {detail}" if field else detail
        self.more = more

    def response(self, request_id: str = "") -> Response:
        """The problem document."""
        content = self.document(request_id)
        return Response(json.dumps(content), self.status, self.headers, media_type=MEDIA_TYPE)

    def document(self, request_id: str = "") -> dict[str, Any]:
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


def unavailable(detail: str, seconds: int) -> Problem:
    """503 with Retry-After."""
    return Problem(503, detail, headers={"Retry-After": str(seconds)})
