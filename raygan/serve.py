"""Serve: an inference graph from MLflow's registry to HTTP.

The mental model:

1. `build` asks the registry which generators are promoted and binds one `GeneratorReplica` deployment to
   each label, and the HTTP `Gateway` in front of them. It runs when the application is deployed; importing
   this module does nothing.
2. A replica fetches its model once and turns (seed, n) into pixels, as a uint8 tensor.
3. The gateway checks the request, asks the label's deployment and encodes the answer.

``serve run serve_config.yaml`` deploys it; the arguments there are the fields of `ServeSettings`.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import fastapi
import torch
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle

from raygan import pictures, tracking
from raygan.cli import validate
from raygan.config import ServeJobSettings, ServeSettings, load_yaml
from raygan.errors import ConfigurationError, RayganError
from raygan.gan.checkpoint import load_generator
from raygan.gan.networks import draw_latents
from raygan.gan.step import seeded, to_uint8

#: Most images in one answer.
MOST_IMAGES = 64


@serve.deployment
class GeneratorReplica:
    """One label's generator, on one worker."""

    def __init__(self, settings: ServeSettings, model: tracking.RegisteredModel):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as scratch:
            folder = tracking.download_model(tracking.connect(settings), model, Path(scratch))
            self._generator, _ = load_generator(folder)
        self._generator.to(self._device)

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """Images (n, 3, S, S) uint8. Image i depends on the seed and i alone, not on n."""
        z_dim = self._generator.settings.z_dim
        latents = torch.cat([draw_latents(1, z_dim, seeded(seed, i, "sample")) for i in range(n)])
        with torch.inference_mode():
            return to_uint8(self._generator(latents.to(self._device))).cpu()


_api = fastapi.FastAPI(title="raygan", description="Samples from face-image GANs")


@_api.exception_handler(fastapi.exceptions.RequestValidationError)
async def _name_the_field(request: fastapi.Request, error: fastapi.exceptions.RequestValidationError) -> JSONResponse:
    """Say in one line which query parameter is wrong, as the jobs do."""
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"detail": "; ".join(problems)}, status_code=422)


@serve.deployment
@serve.ingress(_api)
class Gateway:
    """The HTTP side of the graph."""

    def __init__(self, generators: dict[str, DeploymentHandle], models: dict[str, tracking.RegisteredModel]):
        self._generators, self._models = generators, models

    @_api.get("/v1/sample", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def sample(
        self,
        label: Annotated[str, fastapi.Query(description="which generator, such as cat")],
        n: Annotated[int, fastapi.Query(ge=1, le=MOST_IMAGES, description="images")] = 16,
        seed: Annotated[int, fastapi.Query(ge=0, lt=2**63, description="the same seed gives the same images")] = 0,
    ) -> Response:
        """A PNG grid of n samples, as square as may be."""
        if label not in self._generators:
            known = ", ".join(sorted(self._generators)) or "none yet: train one, then deploy again"
            raise fastapi.HTTPException(404, f"label: no generator for {label!r}; there is {known}")
        images = await self._generators[label].sample.remote(n, seed)
        model = self._models[label]
        headers = {"X-Raygan-Model": model.name, "X-Raygan-Version": model.version, "X-Raygan-Seed": str(seed)}
        columns = max(1, round(n**0.5 + 0.499))
        return Response(pictures.png(pictures.grid(images, columns)), media_type="image/png", headers=headers)

    @_api.get("/v1/models")
    async def models(self) -> dict[str, dict[str, str]]:
        """Name and version of each label's generator."""
        return {label: {"name": model.name, "version": model.version} for label, model in self._models.items()}


def run(settings: ServeJobSettings) -> None:
    """Check what ``serve run`` would stumble over, then become ``serve run``; does not return.

    Raises ConfigurationError if the port is in use or the file is wrong, RayganError if there is no
    generator to serve.
    """
    service = load_yaml(settings.service)
    http = service.get("http_options") or {}
    check_port(str(http.get("host", "127.0.0.1")), int(http.get("port", 8000)))
    if not tracking.serving_generators(tracking.connect(settings)):
        raise RayganError(
            f"MLflow at {tracking.tracking_uri(settings)} has no generator with alias {tracking.SERVING_ALIAS}: "
            f"train one with jobs/train.py, or name another place with --storage or --tracking-uri"
        )
    environment = {**os.environ, "RAYGAN_STORAGE": settings.storage}
    if settings.tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    program = str(Path(sys.executable).with_name("serve"))
    os.execve(program, [program, "run", settings.service], environment)  # noqa: S606 (Ray's own command)


def check_port(host: str, port: int) -> None:
    """Raise ConfigurationError if something listens on the port: Ray Serve would share it or try for ever."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {host} can't be had ({error.strerror}): stop its user, or choose another"
            ) from None


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, for ``serve run``; `arguments` are the fields of `ServeSettings`.

    Raises ConfigurationError on an unknown argument and RayganError if MLflow doesn't answer.
    """
    settings = validate(ServeSettings, arguments)
    models = tracking.serving_generators(tracking.connect(settings))
    generators = {
        label: GeneratorReplica.options(name=f"generator-{label}").bind(settings, model)  # type: ignore[attr-defined]
        for label, model in models.items()
    }
    application: serve.Application = Gateway.bind(generators, models)  # type: ignore[attr-defined]
    return application
