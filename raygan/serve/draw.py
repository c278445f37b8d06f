"""The routes that draw: samples at once or as a stream, and walks between them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, get_args

import fastapi
import numpy as np
from fastapi import Body, Query, Request
from fastapi.responses import Response, StreamingResponse

from raygan.serve import encode, openapi
from raygan.serve.calls import Busy
from raygan.serve.encode import MEDIA_TYPES, Animation, Format
from raygan.serve.headers import (
    CACHE_HEADERS,
    SAMPLE_HEADERS,
    STREAM_HEADERS,
    WALK_HEADERS,
    model_headers,
    sample_headers,
    walk_headers,
)
from raygan.serve.messages import ModelVersion, Samples
from raygan.serve.negotiation import Caching, chosen_format, gzipped, is_head, takes_gzip
from raygan.serve.problems import Problem, as_problem
from raygan.serve.schemas import SampleQuery, StreamQuery, WalkQuery
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings
from raygan.serve.workers import PictureWorkers

#: Images that a stream draws at once.
_STREAM_IMAGES = 16

#: Maximum number of streams at once, and of those that are buffered.
_MAX_STREAMS, _MAX_BUFFERED = 32, 8

#: Bytes of a stream's line at most: for each pixel three, in base64, and for the rest.
_PIXEL_BYTES, _LINE_BYTES = 4, 500


def client_of(request: Request) -> str:
    """Whose request it is, for fairness among clients."""
    return request.client.host if request.client else ""


def add_routes(app: fastapi.FastAPI, service: Service, settings: ServeSettings, *, buffered: bool) -> None:
    """Add the routes. buffered: whether the server in front buffers whole answers."""
    encoding = PictureWorkers("encode", 2, service.metrics)
    _add_sample(app, service, encoding, settings.max_draws)
    _add_stream(app, service, encoding, settings, buffered=buffered)
    _add_interpolate(app, service)


def _add_sample(app: fastapi.FastAPI, service: Service, encoding: PictureWorkers, max_draws: int) -> None:
    responses = {
        **openapi.images({**SAMPLE_HEADERS, **CACHE_HEADERS}, *get_args(Format)),
        **openapi.NOT_MODIFIED,
        **openapi.errors(401, 404, 406, 409, 413, 422, 503),
    }

    async def answer(request: Request, query: SampleQuery) -> Response:
        model = await service.named(query.label, query.version)
        service.check(query.label, model, query.moves, query.min_confidence)
        kind = query.format or chosen_format(request, get_args(Format))
        first = query.seeds[0] if query.seeds else query.seed
        caching = _sample_caching(request, query, kind)
        packed = kind == "json" and takes_gzip(request)

        def headers_for(classifier: ModelVersion | None) -> dict[str, str]:
            return caching.headers(model, classifier, query.model_dump_json(), kind, packed, max_draws)

        headers = {**model_headers(model), **headers_for(service.champions.classifier)}
        if request.method == "GET" and (short := caching.shortcut(headers, MEDIA_TYPES[kind])):
            return short
        model = await service.version(query.label, query.version)
        seed = secrets.randbelow(2**31) if first is None else first
        samples = await service.sample(
            query.label,
            query.n,
            seed,
            query.truncation,
            query.min_confidence,
            model=model,
            seeds=query.seeds,
            moves=query.moves,
        )
        if samples.accepted <= 2 and kind in ("grid", "json"):
            body = encoding.run_here(_body, samples, kind, packed)
        else:
            body = await encoding.run(client_of(request), _body, samples, kind, packed)
        headers = sample_headers(samples, kind)
        if request.method == "GET":
            headers |= headers_for(samples.classifier) if samples.complete else {"Cache-Control": "no-store"}
        if packed and body.startswith(encode.GZIP):
            headers["Content-Encoding"] = "gzip"
        return Response(body, media_type=MEDIA_TYPES[kind], headers=headers)

    @app.get("/v1/sample", responses=responses, response_class=Response, tags=["sample"])
    async def sample(request: Request, query: Annotated[SampleQuery, Query()]) -> Response:
        """Images of one label. The same label, seeds, truncation and model version give the same pixels."""
        return await answer(request, query)

    responses = {
        **openapi.images(SAMPLE_HEADERS, *get_args(Format)),
        **openapi.errors(400, 401, 404, 406, 408, 409, 413, 422, 503),
    }

    @app.post("/v1/sample", responses=responses, response_class=Response, tags=["sample"])
    async def sample_posted(request: Request, query: Annotated[SampleQuery, Body()]) -> Response:
        """The same with parameters in JSON."""
        return await answer(request, query)


def _sample_caching(request: Request, query: SampleQuery, kind: Format) -> Caching:
    has_verdicts = kind in encode.WITH_VERDICTS or query.min_confidence is not None
    return Caching(
        request,
        seeded=bool(query.seeds) or query.seed is not None,
        lasting=query.version is not None and not has_verdicts,
        vary=[*(["Accept"] if query.format is None else []), *(["Accept-Encoding"] if kind == "json" else [])],
    )


def _body(samples: Samples, kind: Format, packed: bool) -> bytes:
    body = encode.samples_body(samples, kind)
    return gzipped(body) if packed else body


def _add_stream(
    app: fastapi.FastAPI, service: Service, encoding: PictureWorkers, settings: ServeSettings, *, buffered: bool
) -> None:
    responses = {**openapi.stream(STREAM_HEADERS), **openapi.errors(401, 404, 409, 422, 503)}
    streams = asyncio.Semaphore(_MAX_BUFFERED if buffered else _MAX_STREAMS)

    async def slot() -> AsyncIterator[None]:
        """Held from before the first image is drawn until the last line is out."""
        if streams.locked():
            service.metrics.count("rejected", stage="stream")
            raise Busy(10)
        async with streams:
            yield

    def check_size(n: int, size: int) -> None:
        most = int(settings.max_sending_megabytes * 1e6 / _MAX_BUFFERED / (_PIXEL_BYTES * size**2 + _LINE_BYTES))
        if buffered and n > most:
            reason = f"a stream of images of {size} px has at most {most} where the service doesn't run behind HAProxy"
            raise Problem(422, reason, field="n")

    @app.get(
        "/v1/stream",
        responses=responses,
        response_class=Response,
        tags=["sample"],
        dependencies=[fastapi.Depends(slot)],
    )
    async def stream(request: Request, query: Annotated[StreamQuery, Query()]) -> Response:
        """Up to 10,000 images, a line of JSON for each as soon as it is drawn: seed, probabilities, png in base64.

        If the service can't go on, the last line is a problem document. Disconnect to end the stream.
        """
        model = await (service.named if is_head(request) else service.version)(query.label, query.version)
        service.check(query.label, model, query.moves)
        check_size(query.n, service.image_size(model))
        seed = secrets.randbelow(2**31) if query.seed is None else query.seed
        headers = {
            **model_headers(model),
            "X-Raygan-Seeds": f"{seed}-{seed + query.n - 1}",
            "Cache-Control": "no-store",
        }
        if is_head(request):
            return Response(headers=headers, media_type=MEDIA_TYPES["ndjson"])

        async def part(start: int) -> bytes:
            count = min(_STREAM_IMAGES, query.n - start)
            samples = await service.sample(
                query.label, count, seed + start, query.truncation, model=model, moves=query.moves
            )
            return await encoding.run(client_of(request), encode.lines, samples)

        async def lines(first: bytes) -> AsyncIterator[bytes]:
            yield first
            for start in range(_STREAM_IMAGES, query.n, _STREAM_IMAGES):
                try:
                    yield await _patiently(partial(part, start), settings.timeout_seconds)
                except Exception as error:  # the status is out already
                    yield json.dumps(as_problem(error).document(request.state.request_id)).encode() + b"\n"
                    return

        # The first part comes before the status, so that a problem has its own.
        return StreamingResponse(lines(await part(0)), headers=headers, media_type=MEDIA_TYPES["ndjson"])


async def _patiently(ask: Callable[[], Awaitable[bytes]], seconds: float) -> bytes:
    """The result of `ask`, retried while the service is busy."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except Busy as busy:
            if time.monotonic() + busy.seconds > deadline:
                raise
            await asyncio.sleep(busy.seconds)


def _add_interpolate(app: fastapi.FastAPI, service: Service) -> None:
    # One thread of their own: an animation takes as long as a hundred grids.
    animating = PictureWorkers("animate", 1, service.metrics, limit=16)
    responses = {
        **openapi.images({**WALK_HEADERS, **CACHE_HEADERS}, *get_args(Animation)),
        **openapi.NOT_MODIFIED,
        **openapi.errors(401, 404, 406, 409, 422, 503),
    }

    @app.get("/v1/interpolate", responses=responses, response_class=Response, tags=["sample"])
    async def interpolate(request: Request, query: Annotated[WalkQuery, Query()]) -> Response:
        """An animated walk through latent space, from one seed's image to another's."""
        model = await service.named(query.label, query.version)
        service.check(query.label, model, query.moves)
        kind = query.format or chosen_format(request, get_args(Animation))
        to = query.seed + 1 if query.to is None else query.to
        vary = ["Accept"] if query.format is None else []
        caching = Caching(request, seeded=True, lasting=query.version is not None, vary=vary)
        headers = walk_headers(model, query.seed, to) | caching.headers(model, query.model_dump_json(), kind)
        if short := caching.shortcut(headers, MEDIA_TYPES[kind]):
            return short
        model = await service.version(query.label, query.version)
        frames = await service.walk(
            query.label, query.seed, to, query.frames, query.truncation, model=model, moves=query.moves
        )
        if query.bounce:
            frames = np.concatenate([frames, frames[-2:0:-1]])
        milliseconds = round(1000 / query.fps)
        body = await animating.run(client_of(request), encode.animation, frames, kind, milliseconds=milliseconds)
        return Response(body, media_type=MEDIA_TYPES[kind], headers=headers)
