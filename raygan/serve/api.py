"""The HTTP API's routes around a `Service`.

Everything under /v1 is stable. pydantic checks parameters before a route runs (`schemas`), and errors of all kinds
leave as problem documents (`problems`). The application is plain FastAPI: it runs in the gateway's replica, and in
tests without Ray.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from importlib import resources
from typing import Annotated

import fastapi
import numpy as np
from fastapi import Body, File, Query, UploadFile
from fastapi.responses import Response

from raygan import __version__
from raygan.serve import encode, openapi
from raygan.serve.headers import SAMPLE_HEADERS, WALK_HEADERS, sample_headers, walk_headers
from raygan.serve.messages import ModelVersion, Pixels
from raygan.serve.problems import Problem, add_error_handlers, unavailable
from raygan.serve.schemas import Classified, ModelInfo, Models, Readiness, SampleQuery, Verdict, WalkQuery
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings
from raygan.serve.workers import Decoders, PictureWorkers

#: Maximum number of uploads in one request.
MAX_UPLOADS = 32

_PAGE_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def create_app(service: Service, settings: ServeSettings, not_ready: Callable[[], list[str]]) -> fastapi.FastAPI:
    """The application.

    Args:
        service: answers requests.
        settings: limits of uploads.
        not_ready: names of what keeps the service from being ready.
    """
    app = fastapi.FastAPI(
        title="raygan",
        version=__version__,
        description="Samples from face-image GANs, scored by a classifier.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_error_handlers(app)
    _add_pages(app)
    _add_status(app, service, not_ready)
    encoding = PictureWorkers("encode", 2, service.metrics)
    _add_sample(app, service, encoding)
    _add_interpolate(app, service)
    _add_classify(app, service, settings)
    openapi.describe(app)
    return app


def _add_sample(app: fastapi.FastAPI, service: Service, encoding: PictureWorkers) -> None:
    responses = {
        **openapi.images(SAMPLE_HEADERS, "grid", "zip", "json", "npz", "webp", "jpeg"),
        **openapi.errors(401, 404, 409, 413, 422, 503),
    }

    async def answer(query: SampleQuery, client: str) -> Response:
        seed = secrets.randbelow(2**31) if query.seed is None else query.seed
        samples = await service.sample(query.label, query.n, seed, query.truncation, query.min_confidence)
        if query.n <= 2 and query.format in ("grid", "json"):
            body = encoding.run_here(encode.samples_body, samples, query.format)
        else:
            body = await encoding.run(client, encode.samples_body, samples, query.format)
        headers = sample_headers(samples, query.format)
        return Response(body, media_type=encode.MEDIA_TYPES[query.format], headers=headers)

    @app.get("/v1/sample", responses=responses, response_class=Response, tags=["sample"])
    async def sample(request: fastapi.Request, query: Annotated[SampleQuery, Query()]) -> Response:
        """Images of one label. The same label, seed, n and model version give the same pixels."""
        return await answer(query, _client(request))

    responses = {**responses, **openapi.errors(400, 408)}

    @app.post("/v1/sample", responses=responses, response_class=Response, tags=["sample"])
    async def sample_posted(request: fastapi.Request, query: Annotated[SampleQuery, Body()]) -> Response:
        """The same with parameters in JSON."""
        return await answer(query, _client(request))


def _client(request: fastapi.Request) -> str:
    """Whose request it is, for fairness among clients."""
    return request.client.host if request.client else ""


def _add_interpolate(app: fastapi.FastAPI, service: Service) -> None:
    # One thread of their own: an animation takes as long as a hundred grids.
    animating = PictureWorkers("animate", 1, service.metrics, limit=16)
    responses = {**openapi.images(WALK_HEADERS, "webp", "gif"), **openapi.errors(401, 404, 422, 503)}

    @app.get("/v1/interpolate", responses=responses, response_class=Response, tags=["sample"])
    async def interpolate(request: fastapi.Request, query: Annotated[WalkQuery, Query()]) -> Response:
        """An animated walk through latent space, from one seed's image to another's."""
        to = query.seed + 1 if query.to is None else query.to
        frames, model = await service.walk(query.label, query.seed, to, query.frames, query.truncation)
        if query.bounce:
            frames = np.concatenate([frames, frames[-2:0:-1]])
        milliseconds = round(1000 / query.fps)
        body = await animating.run(_client(request), encode.animation, frames, query.format, milliseconds=milliseconds)
        headers = walk_headers(model, query.seed, to)
        return Response(body, media_type=encode.MEDIA_TYPES[query.format], headers=headers)


def _add_classify(app: fastapi.FastAPI, service: Service, settings: ServeSettings) -> None:
    decoders = Decoders(2, service.metrics, max_megapixels=settings.max_upload_megapixels)
    max_megabytes = settings.max_upload_megabytes

    async def decoded(client: str, upload: UploadFile, size: int, field: str) -> Pixels:
        if (upload.size or 0) > max_megabytes * 1e6:
            raise Problem(413, f"the limit is {max_megabytes:g} MB", field=field)
        return await decoders.decode(client, await upload.read(), size, field)

    @app.post(
        "/v1/classify",
        response_model=Classified,
        responses=openapi.errors(400, 401, 408, 409, 413, 422, 503),
        tags=["classify"],
    )
    async def classify(
        request: fastapi.Request,
        images: Annotated[list[UploadFile], File(description=f"1 to {MAX_UPLOADS} image files")],
    ) -> Classified:
        """The classifier's probabilities for uploaded images, each cropped to its central square."""
        if len(images) > MAX_UPLOADS:
            raise Problem(422, f"{len(images)} files; the limit is {MAX_UPLOADS}", field="images")
        size = service.image_size(service.current_classifier())
        arrays = [await decoded(_client(request), upload, size, f"images[{i}]") for i, upload in enumerate(images)]
        predictions, model = await service.classify(np.stack(arrays))
        verdicts = [
            Verdict(probabilities={label: round(float(p), 4) for label, p in zip(predictions.labels, row, strict=True)})
            for row in predictions.probabilities
        ]
        return Classified(classifier=_info(service, model), images=verdicts)


def _info(service: Service, model: ModelVersion) -> ModelInfo:
    return ModelInfo(name=model.name, version=model.version, image_size=service.image_size(model))


def _add_status(app: fastapi.FastAPI, service: Service, not_ready: Callable[[], list[str]]) -> None:
    @app.get("/v1/models", response_model=Models, responses=openapi.errors(401), tags=["status"])
    async def models() -> Models:
        """The labels, and the model versions that answer."""
        champions = service.champions
        classifier = champions.classifier
        return Models(
            generators={label: _info(service, model) for label, model in sorted(champions.generators.items())},
            classifier=_info(service, classifier) if classifier else None,
            classifier_labels=service.labels(classifier) if classifier else [],
        )

    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """Whether the gateway is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses=openapi.errors(503), tags=["status"])
    async def readyz(request: fastapi.Request) -> Readiness:
        """Whether the service has started and serves a label; with the token, also which models are not served."""
        trusted = getattr(request.state, "trusted", True)
        missing = not_ready()
        if missing:
            raise unavailable(f"not ready: {', '.join(missing)}" if trusted else "not ready", 2)
        lacking = service.not_served(service.wanted) if trusted and service.wanted else []
        return Readiness(status="ready", not_served=[str(model) for model in lacking])


def _add_pages(app: fastapi.FastAPI) -> None:
    folder = resources.files("raygan.serve").joinpath("pages")
    # Read once: a name from a client is looked up here and never opened.
    pages = {entry.name: entry.read_bytes() for entry in folder.iterdir() if _suffix(entry.name) in _PAGE_TYPES}

    def page(name: str) -> Response:
        if name not in pages:
            raise Problem(404, "no such page")
        media_type = f"{_PAGE_TYPES[_suffix(name)]}; charset=utf-8"
        return Response(pages[name], media_type=media_type, headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get("/pages/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return page(name)


def _suffix(name: str) -> str:
    return name.split(".")[-1]
