"""The OpenAPI description beyond what FastAPI derives: problem documents, pictures, and the token."""

from __future__ import annotations

from typing import Any

import fastapi

from raygan.serve import problems
from raygan.serve.encode import MEDIA_TYPES
from raygan.serve.headers import header_schema
from raygan.serve.schemas import ProblemDocument, SampleDocument, SamplesDocument

_SCHEMAS = "#/components/schemas/"

_ERRORS = {
    400: "The body is unreadable",
    401: "The token is missing or wrong",
    404: "Unknown label or version",
    406: "No format that Accept permits",
    408: "The body did not arrive in time",
    409: "There is no classifier, or it does not know the label; or the version can't be loaded",
    413: "Too many bytes or pixels",
    422: "A parameter is wrong, or no sample reaches the confidence",
    503: "Overloaded, or a replica is being replaced: try again after Retry-After seconds",
}


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names this answer"}}


def stream(headers: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The description of a response with lines of JSON. headers: their descriptions."""
    schema = {"$ref": _SCHEMAS + SampleDocument.__name__}
    content = {MEDIA_TYPES["ndjson"]: {"schema": schema}}
    return {200: {"description": "A line of JSON per image", "content": content, "headers": headers}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of a route's error responses."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + ProblemDocument.__name__}}}
    retry = {"headers": {"Retry-After": header_schema("seconds until the next try", kind="integer")}}
    return {
        status: {"description": _ERRORS[status], "content": content, **(retry if status == 503 else {})}
        for status in statuses
    }


def images(headers: dict[str, Any], *kinds: str) -> dict[int | str, dict[str, Any]]:
    """The description of a route's response with images.

    Args:
        headers: their descriptions.
        kinds: formats, keys of `encode.MEDIA_TYPES`.
    """
    binary = {"type": "string", "format": "binary"}
    document = {"$ref": _SCHEMAS + SamplesDocument.__name__}
    content = {MEDIA_TYPES[kind]: {"schema": document if kind == "json" else binary} for kind in kinds}
    return {200: {"description": "The images", "content": content, "headers": headers}}


def describe(app: fastapi.FastAPI) -> None:
    """Describe what the service really answers: problem documents instead of FastAPI's own errors."""
    derived = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = derived()
            schemas = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for model in (ProblemDocument, SamplesDocument):
                definition = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
                schemas.update(definition.pop("$defs", {}))
                schemas[model.__name__] = definition
            for path in schema["paths"].values():
                for parameter in path.get("get", {}).get("parameters", []):
                    if parameter["name"] in ("seeds", "moves"):
                        parameter |= {"style": "form", "explode": False}  # seeds=1,5,9
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}, {}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
