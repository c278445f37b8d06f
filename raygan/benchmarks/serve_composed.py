"""The graph as Ray Serve's documentation would write it: `@serve.batch` in each deployment, handles composed."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from raygan.benchmarks.serve_models import Pair, picture
from raygan.models.gan import to_uint8
from raygan.serve.messages import Pixels

_BATCHES: dict[str, Any] = {"max_batch_size": 16, "batch_wait_timeout_s": 0.005, "max_concurrent_batches": 2}

app = fastapi.FastAPI()


class _Model:
    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        self.pair = Pair(folder, fast=True)
        self.pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))


class Generator(_Model):
    """n and seed to images."""

    @serve.batch(**_BATCHES)  # type: ignore[untyped-decorator]
    async def draw(self, asked: list[tuple[int, int]]) -> list[Pixels]:
        images: Pixels = await asyncio.get_running_loop().run_in_executor(self.pool, self._draw, asked)
        return np.split(images, np.cumsum([n for n, _ in asked])[:-1])

    @torch.inference_mode()
    def _draw(self, asked: list[tuple[int, int]]) -> Pixels:
        latents = torch.cat([self.pair.latents(n, seed) for n, seed in asked])
        pixels: Pixels = to_uint8(self.pair.network(latents)).permute(0, 2, 3, 1).contiguous().numpy()
        return pixels


class Classifier(_Model):
    """Images to probabilities."""

    @serve.batch(**_BATCHES)  # type: ignore[untyped-decorator]
    async def classify(self, asked: list[Pixels]) -> list[np.ndarray]:
        images = torch.from_numpy(np.concatenate(asked)).permute(0, 3, 1, 2)
        probabilities = await asyncio.get_running_loop().run_in_executor(
            self.pool, self.pair.classifier.probabilities, images
        )
        return np.split(probabilities.numpy(), np.cumsum([len(images) for images in asked])[:-1])


@serve.ingress(app)
class Gateway:
    """Composes both: the classifier's call takes the generator's unfinished answer."""

    def __init__(self, generator: DeploymentHandle, classifier: DeploymentHandle):
        self.generator, self.classifier = generator, classifier

    @app.get("/v1/sample")
    async def sample(self, label: str, n: int = 16, seed: int = 0) -> fastapi.Response:
        images = self.generator.draw.remote((n, seed))
        probabilities = await self.classifier.classify.remote(images)
        headers = {"X-Probabilities": json.dumps(probabilities.round(4).tolist())}
        return fastapi.Response(picture(await images), media_type="image/png", headers=headers)


def build_composed(folder: Path) -> serve.Application:
    """The application, with the models that `make_models` put in the folder."""

    def deployment(kind: Any) -> serve.Deployment:
        return serve.deployment(kind).options(
            max_ongoing_requests=100, logging_config={"enable_access_log": False}, ray_actor_options={"num_cpus": 0.1}
        )

    application: serve.Application = deployment(Gateway).bind(
        deployment(Generator).bind(folder), deployment(Classifier).bind(folder)
    )
    return application
