"""The HTTP API around a `Service`: uploads, status and pages here, the routes that draw in `draw`.

Everything under /v1 is stable. pydantic checks parameters before a route runs (`schemas`), and errors of all kinds
leave as problem documents (`problems`). The application is plain FastAPI: it runs in the gateway's replica, and in
tests without Ray.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from importlib import resources
from typing import Annotated

import fastapi
import numpy as np
from fastapi import File, UploadFile
from fastapi.responses import Response

from raygan import __version__
from raygan.serve import draw, openapi
from raygan.serve.draw import client_of
from raygan.serve.messages import ModelVersion, Pixels
from raygan.serve.negotiation import MIN_BYTES, GzipForText
from raygan.serve.problems import Problem, add_error_handlers, unavailable
from raygan.serve.schemas import Classified, ModelInfo, Models, Readiness, Verdict
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings
from raygan.serve.workers import Decoders

#: Seconds for Serve to say how it is.
_HEALTH_SECONDS = 2.0

#: Maximum number of uploads in one request.
MAX_UPLOADS = 32

_PAGE_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


_DESCRIPTION = """Samples from face-image GANs, scored by a classifier. From Python:

    import httpx
    open("cats.png", "wb").write(httpx.get("http://127.0.0.1:8000/v1/sample?label=cat&n=16&seed=7").content)

With a seed, answers carry an ETag; with a model version too, they may be kept forever. HEAD computes nothing.
"""


def create_app(
    service: Service, settings: ServeSettings, not_ready: Callable[[], list[str]], *, buffered: bool = False
) -> fastapi.FastAPI:
    """The application.

    Args:
        service: answers requests.
        settings: limits of uploads and streams.
        not_ready: names of what keeps the service from being ready.
        buffered: whether the server in front buffers whole answers.
    """
    app = fastapi.FastAPI(
        title="raygan",
        version=__version__,
        description=_DESCRIPTION,
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(GzipForText, minimum_size=MIN_BYTES, compresslevel=1)
    add_error_handlers(app)
    draw.add_routes(app, service, settings, buffered=buffered)  # first: routes are tried one after another
    _add_classify(app, service, settings)
    _add_status(app, service, not_ready)
    _add_pages(app)
    openapi.describe(app)
    return app


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
        model = service.current_classifier()  # to the end: a newer one may want images of another size
        size, info = service.image_size(model), _info(service, model)
        arrays = [await decoded(client_of(request), upload, size, f"images[{i}]") for i, upload in enumerate(images)]
        predictions = await service.classify(np.stack(arrays), model)
        return Classified(classifier=info, images=[Verdict(probabilities=row) for row in predictions.plain()])


def _info(service: Service, model: ModelVersion) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        version=model.version,
        image_size=service.image_size(model),
        directions=service.directions(model),
    )


def _add_status(app: fastapi.FastAPI, service: Service, not_ready: Callable[[], list[str]]) -> None:
    @app.get("/v1/models", response_model=Models, responses=openapi.errors(401, 503), tags=["status"])
    async def models() -> Models:
        """The labels, and the model versions that answer."""
        if service.wanted is None:
            raise unavailable("the models are not loaded yet", 2)
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
        """Whether the service serves a label and isn't stopping; with the token, also which models are not served."""
        trusted = getattr(request.state, "trusted", True)
        missing = not_ready()
        if await is_draining(request.scope.get("server")):
            raise unavailable("the service is stopping", 5)
        if missing:
            raise unavailable(f"not ready: {', '.join(missing)}" if trusted else "not ready", 2)
        lacking = service.not_served(service.wanted) if trusted and service.wanted else []
        return Readiness(status="ready", not_served=[str(model) for model in lacking])


async def is_draining(server: tuple[str, int | None] | None) -> bool:
    """Whether Serve is taking out of service what listens at this address: a gateway, or the proxy in front of it.

    Serve answers that at /-/healthz there, and doesn't tell the application.
    """
    if server is None or server[1] is None:
        return False
    # TLS is tried second: where a load balancer has it, the request's scheme says https, and this address has none.
    status = await _health_status(server, None) or await _health_status(server, _any_certificate())
    return status == b"503"


def _any_certificate() -> ssl.SSLContext:
    """TLS without checking the certificate: the question goes where this request came in, and holds no secrets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _health_status(server: tuple[str, int | None], tls: ssl.SSLContext | None) -> bytes:
    """The status of /-/healthz; empty if there is no answer in HTTP."""
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            reader, writer = await asyncio.open_connection(*server, ssl=tls)
            writer.write(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
    return line.split()[1] if line.startswith(b"HTTP/") else b""


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
