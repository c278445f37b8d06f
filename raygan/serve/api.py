"""The HTTP API: routes, their parameters and their answers, around a `Service`.

Everything under /v1 is stable. Parameters are judged by pydantic before a route runs, so a route sees only values
in range; errors of all kinds leave as problem documents. The application is plain FastAPI: it runs in the gateway's
replica, and in tests without Ray.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any, TypeVar

import fastapi
import numpy as np
from fastapi import Body, File, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from raygan import __version__
from raygan.serve import encode, problems
from raygan.serve.batching import Busy, Died
from raygan.serve.messages import ModelVersion
from raygan.serve.metrics import Meters
from raygan.serve.middleware import TooLarge, as_problem
from raygan.serve.problems import Problem
from raygan.serve.service import MOST_IMAGES, Samples, Service
from raygan.serve.settings import ServeSettings
from raygan.serve.uploads import decode_upload

#: Most uploads in one request.
MOST_UPLOADS = 32

#: Seeds are below this: numbers that every JSON reader keeps exact, with room for an image's place in the answer.
SEED_LIMIT = 2**52

#: Longest value of the header with probabilities; more of them are in the formats json, zip and npz.
_HEADER_CHARACTERS = 4000

#: Most mistakes that an answer lists, and characters of a parameter's name in it: both are the client's to choose.
_MOST_ERRORS, _NAME_CHARACTERS = 10, 100

T = TypeVar("T")


def _digits(value: Any) -> Any:
    """A number as JSON and people write it: pydantic would take true for 1 and 1_000 for 1000."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value)):
        raise PydanticCustomError("int_parsing", "Input should be a whole number in digits")
    return value


Whole = Annotated[int, BeforeValidator(_digits)]


class SampleQuery(BaseModel):
    """What `sample` is asked."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=100, description="which generator, such as cat")
    n: Whole = Field(16, ge=1, le=MOST_IMAGES, description="images")
    seed: Whole | None = Field(
        None, ge=0, lt=SEED_LIMIT, description="of the first image, the next has seed + 1; by default drawn at random"
    )
    truncation: float = Field(1.0, gt=0, le=1, description="less is more typical and less varied")
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="only images to which the classifier gives this probability of the label or more"
    )
    format: encode.Format = Field("grid", description="grid is a PNG; webp and jpeg are grids too")


class WalkQuery(BaseModel):
    """What `interpolate` is asked."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=100, description="which generator, such as cat")
    seed: Whole = Field(0, ge=0, lt=SEED_LIMIT, description="of the first frame")
    to: Whole | None = Field(None, ge=0, lt=SEED_LIMIT, description="seed of the last frame; by default seed + 1")
    frames: Whole = Field(24, ge=2, le=MOST_IMAGES, description="frames, both ends included")
    fps: Whole = Field(12, ge=1, le=50, description="frames a second")
    truncation: float = Field(1.0, gt=0, le=1, description="less is more typical and less varied")
    bounce: bool = Field(False, description="go back the same way before it repeats")
    format: encode.Animation = Field("webp", description="of the animation")


class ModelInfo(BaseModel):
    """A registered model's version that answers."""

    name: str
    version: str
    image_size: int


class Models(BaseModel):
    """Who answers: a generator for each label, and the classifier if there is one."""

    generators: dict[str, ModelInfo]
    classifier: ModelInfo | None
    classifier_labels: list[str]


class Verdict(BaseModel):
    """One image's probability of each label."""

    probabilities: dict[str, float]


class Classified(BaseModel):
    """Verdicts on uploaded images, in their order."""

    classifier: ModelInfo
    images: list[Verdict]


class NamedVersion(BaseModel):
    """A registered model's version."""

    name: str
    version: str


class SampleDocument(BaseModel):
    """One image of a JSON answer. probabilities: null where no classifier is registered. png: base64."""

    seed: int
    probabilities: dict[str, float] | None
    png: str


class SamplesDocument(BaseModel):
    """A JSON answer."""

    label: str
    model: NamedVersion
    classifier: NamedVersion | None
    drawn: int
    accepted: int
    images: list[SampleDocument]


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    request_id: str | None = None


_SCHEMAS = "#/components/schemas/"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "ProblemDocument"}}}
    retry = {"Retry-After": _header("seconds after which to try again", kind="integer")}
    texts = {
        400: "The body can't be read",
        401: "The token is missing or wrong",
        404: "No such label",
        408: "The body did not come in time",
        409: "There is no classifier, or it does not know the label",
        413: "Too many bytes or pixels",
        422: "A parameter is wrong, or no sample is confident enough",
        503: "Overloaded, or a replica is being replaced: try again after Retry-After seconds",
    }
    return {
        status: {
            "description": texts[status],
            "content": content,
            **({"headers": retry} if status == 503 else {}),
        }
        for status in statuses
    }


def _header(description: str, *, kind: str = "string", required: bool = True) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}, "required": required}


def _images(headers: dict[str, Any], *kinds: str) -> dict[int | str, dict[str, Any]]:
    binary = {"type": "string", "format": "binary"}
    document = {"$ref": _SCHEMAS + "SamplesDocument"}
    content = {encode.MEDIA_TYPES[kind]: {"schema": document if kind == "json" else binary} for kind in kinds}
    return {200: {"description": "The images", "content": content, "headers": headers}}


_HEADERS = {
    "X-Raygan-Model": _header("the registered model that drew them; what is not ASCII is percent-encoded"),
    "X-Raygan-Version": _header("its version"),
    "X-Raygan-Seeds": _header("seeds and ranges of seeds, such as 7,9-11"),
}

_SAMPLE_HEADERS = {
    **_HEADERS,
    "X-Raygan-Seed": _header("seed of the first image", kind="integer"),
    "X-Raygan-Drawn": _header("images that were looked at until these were found", kind="integer"),
    "X-Raygan-Accepted": _header("images in the answer", kind="integer"),
    "X-Raygan-Classifier-Version": _header("the classifier's version, where there is one", required=False),
    "X-Raygan-Probabilities": _header(
        "JSON, where there is a classifier and the format is a picture: for each label the images' probabilities; "
        "only for the asked label where all would be too long",
        required=False,
    ),
}

_WALK_HEADERS = {**_HEADERS, "X-Raygan-Seeds": _header("the first frame's seed and the last one's")}

_POSTED_ERRORS = _errors(400, 408)

_SAMPLE_RESPONSES = {
    **_images(_SAMPLE_HEADERS, "grid", "zip", "json", "npz", "webp", "jpeg"),
    **_errors(401, 404, 409, 413, 422, 503),
}


class Encoder:
    """Threads that work on pictures, apart from the loop that answers. name: of the stage, in the metrics."""

    def __init__(self, name: str, threads: int, meters: Meters):
        self._pool = ThreadPoolExecutor(threads, name)
        self._name, self._meters = name, meters

    async def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What `work` gives, from a thread."""
        loop = asyncio.get_running_loop()
        asked = time.perf_counter()

        def timed() -> tuple[T, float, float]:
            began = time.perf_counter()
            return work(*arguments, **options), began, time.perf_counter()

        made, began, ended = await loop.run_in_executor(self._pool, timed)
        self._meters.observe("stage_seconds", began - asked, stage=self._name, part="waiting")
        self._meters.observe("stage_seconds", ended - began, stage=self._name, part="computing")
        return made

    def run_here(self, work: Callable[..., T], *arguments: Any) -> T:
        """The same for what takes less time than a thread's beginning."""
        began = time.perf_counter()
        made = work(*arguments)
        self._meters.observe("stage_seconds", time.perf_counter() - began, stage=self._name, part="computing")
        return made


def create_app(service: Service, settings: ServeSettings, ready: Callable[[], list[str]]) -> fastapi.FastAPI:
    """The application. ready: names of what isn't ready yet."""
    app = fastapi.FastAPI(
        title="raygan",
        version=__version__,
        description="Samples from face-image GANs, judged by a classifier.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_error_handlers(app)
    _add_pages(app)
    _add_status(app, service, ready)
    _add_sampling(app, service)
    _add_classification(app, service, settings)
    _describe(app)
    return app


def _add_sampling(app: fastapi.FastAPI, service: Service) -> None:
    encoder = Encoder("encode", 2, service.meters)

    async def answer(query: SampleQuery) -> Response:
        seed = secrets.randbelow(2**31) if query.seed is None else query.seed
        samples = await service.sample(query.label, query.n, seed, query.truncation, query.min_confidence)
        if query.n <= 2 and query.format in ("grid", "json"):
            body = encoder.run_here(encode.samples_body, samples, query.format)
        else:
            body = await encoder.run(encode.samples_body, samples, query.format)
        return Response(body, media_type=encode.MEDIA_TYPES[query.format], headers=_headers(samples, query.format))

    @app.get("/v1/sample", responses=_SAMPLE_RESPONSES, response_class=Response, tags=["sample"])
    async def sample(query: Annotated[SampleQuery, Query()]) -> Response:
        """Images of one label. The same label, seed, n and model version give the same pixels."""
        return await answer(query)

    @app.post("/v1/sample", responses={**_SAMPLE_RESPONSES, **_POSTED_ERRORS}, response_class=Response, tags=["sample"])
    async def sample_posted(query: Annotated[SampleQuery, Body()]) -> Response:
        """The same, asked for in JSON."""
        return await answer(query)

    @app.get(
        "/v1/interpolate",
        responses={**_images(_WALK_HEADERS, "webp", "gif"), **_errors(401, 404, 422, 503)},
        response_class=Response,
        tags=["sample"],
    )
    async def interpolate(query: Annotated[WalkQuery, Query()]) -> Response:
        """An animated walk through latent space, from one seed's image to another's."""
        to = query.seed + 1 if query.to is None else query.to
        frames, model = await service.walk(query.label, query.seed, to, query.frames, query.truncation)
        if query.bounce:
            frames = np.concatenate([frames, frames[-2:0:-1]])
        milliseconds = round(1000 / query.fps)
        body = await encoder.run(encode.animation, frames, query.format, milliseconds=milliseconds)
        headers = {
            "X-Raygan-Model": _in_header(model.name),
            "X-Raygan-Version": model.version,
            "X-Raygan-Seeds": f"{query.seed},{to}",
        }
        return Response(body, media_type=encode.MEDIA_TYPES[query.format], headers=headers)


def _headers(samples: Samples, kind: encode.Format) -> dict[str, str]:
    headers = {
        "X-Raygan-Model": _in_header(samples.model.name),
        "X-Raygan-Version": samples.model.version,
        "X-Raygan-Seed": str(samples.seeds[0]),
        "X-Raygan-Seeds": _ranges(samples.seeds),
        "X-Raygan-Drawn": str(samples.drawn),
        "X-Raygan-Accepted": str(samples.accepted),
    }
    if samples.verdicts is not None and samples.classifier is not None:
        headers["X-Raygan-Classifier-Version"] = samples.classifier.version
        if kind not in ("json", "zip", "npz"):
            headers["X-Raygan-Probabilities"] = _probabilities_header(samples)
    if kind in ("zip", "npz"):
        name = "".join(c for c in samples.label if c.isascii() and c.isalnum()) or "samples"
        headers["Content-Disposition"] = f'attachment; filename="{name}-{samples.seeds[0]}.{kind}"'
    return headers


def _in_header(name: str) -> str:
    """A name as headers may carry it: what isn't ASCII percent-encoded."""
    return urllib.parse.quote(name, safe=" !#$&'()*+,-./:;=?@[]^_`{|}~")


def _probabilities_header(samples: Samples) -> str:
    """JSON: for each label the images' probabilities; only for the asked label where all of them are too long."""
    verdicts = samples.verdicts
    assert verdicts is not None  # noqa: S101 (for mypy; the caller has looked)
    columns = {label: [round(float(p), 4) for p in verdicts.of(label)] for label in verdicts.labels}
    text = json.dumps(columns, separators=(",", ":"))
    if len(text) > _HEADER_CHARACTERS:
        chosen = {label: values for label, values in columns.items() if label == samples.label}
        text = json.dumps(chosen, separators=(",", ":"))
    return text


def _ranges(seeds: list[int]) -> str:
    """Seeds as numbers and ranges: "7-22" or "7,9-11"."""
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def _add_classification(app: fastapi.FastAPI, service: Service, settings: ServeSettings) -> None:
    decoder = Encoder("decode", 1, service.meters)  # one at a time, since a decoded photo takes memory by its pixels

    @app.post(
        "/v1/classify",
        response_model=Classified,
        responses=_errors(400, 401, 408, 409, 413, 422, 503),
        tags=["classify"],
    )
    async def classify(
        images: Annotated[list[UploadFile], File(description=f"1 to {MOST_UPLOADS} image files")],
    ) -> Classified:
        """The classifier's verdict on uploaded images; their centre squares are looked at."""
        if len(images) > MOST_UPLOADS:
            raise Problem(422, f"{len(images)} files; {MOST_UPLOADS} are the most", field="images")
        size = service.image_size(service.judge())
        arrays = []
        for number, upload in enumerate(images):
            field = f"images[{number}]"
            if (upload.size or 0) > settings.max_upload_megabytes * 1e6:
                raise Problem(413, f"{settings.max_upload_megabytes:g} MB are the most", field=field)
            data = await upload.read()
            limit = settings.max_upload_megapixels
            arrays.append(await decoder.run(decode_upload, data, size, most_megapixels=limit, field=field))
        verdicts, model = await service.classify(np.stack(arrays))
        found = [
            Verdict(probabilities={label: round(float(p), 4) for label, p in zip(verdicts.labels, row, strict=True)})
            for row in verdicts.probabilities
        ]
        return Classified(
            classifier=_info(service, model),
            images=found,
        )


def _info(service: Service, model: ModelVersion) -> ModelInfo:
    return ModelInfo(name=model.name, version=model.version, image_size=service.image_size(model))


def _add_status(app: fastapi.FastAPI, service: Service, ready: Callable[[], list[str]]) -> None:
    @app.get("/v1/models", response_model=Models, responses=_errors(401), tags=["status"])
    async def models() -> Models:
        """Labels, and the versions of models that answer."""
        champions = service.champions
        classifier = champions.classifier
        return Models(
            generators={label: _info(service, model) for label, model in sorted(champions.generators.items())},
            classifier=_info(service, classifier) if classifier else None,
            classifier_labels=service.labels(classifier) if classifier else [],
        )

    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """Whether the gateway lives."""
        return {"status": "alive"}

    @app.get("/readyz", responses=_errors(503), tags=["status"])
    async def readyz(request: fastapi.Request) -> dict[str, str]:
        """Whether every model is loaded and has a replica; which haven't is told to those who may know."""
        missing = ready()
        if missing:
            names = f": {', '.join(missing)}" if getattr(request.state, "trusted", True) else ""
            raise problems.unavailable(f"not ready{names}", 2)
        return {"status": "ready"}


def _add_pages(app: fastapi.FastAPI) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    folder = resources.files("raygan.serve").joinpath("pages")
    # Read once, and by name from here on: what a client asks for is looked up, never opened.
    pages = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.split(".")[-1] in kinds}

    def page(name: str) -> Response:
        if name not in pages:
            raise Problem(404, "there is no such page")
        kind = kinds[name.split(".")[-1]]
        return Response(pages[name], media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get("/pages/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return page(name)


def _add_error_handlers(app: fastapi.FastAPI) -> None:
    def request_id(request: fastapi.Request) -> str:
        return str(getattr(request.state, "request_id", ""))

    async def foreseen(request: fastapi.Request, error: Exception) -> Response:
        return as_problem(error).response(request_id(request))

    async def invalid(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 (for mypy)
        wrong = error.errors()
        found = [{"field": _field(problem), "message": str(problem["msg"])} for problem in wrong[:_MOST_ERRORS]]
        detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in found)
        if len(wrong) > _MOST_ERRORS:
            detail += f"; and {len(wrong) - _MOST_ERRORS} more"
        problem = Problem(422, detail, errors=found)
        problem.field = None
        return problem.response(request_id(request))

    async def refused(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 (for mypy)
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:  # each route knows its own method only
            matching = [r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
            methods = {method for route in matching for method in route.methods or ()}
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return Problem(error.status_code, str(error.detail), headers=headers).response(request_id(request))

    for kind in (Problem, Busy, Died, TooLarge, asyncio.TimeoutError, Exception):
        app.add_exception_handler(kind, foreseen)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)


def _field(problem: dict[str, Any]) -> str:
    """A parameter's name, without where it was given; the request's body itself is "body"."""
    location = problem["loc"]
    if problem["type"] == "json_invalid":  # what follows "body" is the place in its text
        location = location[:1]
    parts = [str(part) for part in location[1:]] or [str(location[0])]
    return ".".join(parts)[:_NAME_CHARACTERS]


def _describe(app: fastapi.FastAPI) -> None:
    """Bring the OpenAPI description in line with what is answered: problem documents, not FastAPI's own errors."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schemas = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for model in (ProblemDocument, SamplesDocument):
                described = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
                schemas.update(described.pop("$defs", {}))
                schemas[model.__name__] = described
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}, {}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
