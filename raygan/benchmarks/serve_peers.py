"""The servers that `benchmark serve` compares, each a process of its own: python -m raygan.benchmarks.serve_peers NAME.

All have the same generator and the same classifier and answer with a PNG grid and the probabilities.

    bare           no server: the optimised models in lanes, the limit of everything else
    fastapi        FastAPI under uvicorn as one writes it: the models as they are, a lock, no batching
    fastapi-fast   the same with our optimised models
    litserve       LitServe with batching and our optimised models
    raygan         the service
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygan.models.fuse import fast_classifier, fast_network
from raygan.models.gan import Generator, NetworkSettings, load_generator, save_generator, to_uint8
from raygan.models.googlenet import build_googlenet, load_classifier, save_classifier
from raygan.models.hardware import computes_bf16
from raygan.models.latents import latents_of
from raygan.serve import encode
from raygan.serve.messages import Pixels
from raygan.serve.settings import ServeSettings

CPU = torch.device("cpu")


def make_models(folder: Path, image_size: int, width: int) -> None:
    """An untrained generator and classifier in a registry under `folder`: speed doesn't depend on the weights."""
    from raygan import tracking

    torch.manual_seed(0)
    settings = ServeSettings(storage=str(folder), tracking_uri=None)
    save_generator(folder / "generator", Generator(NetworkSettings(image_size, 200, width)).eval(), {})
    labels = ("cat", "dog")
    save_classifier(
        folder / "classifier", build_googlenet(2, auxiliary=False), labels=labels, image_size=image_size, about={}
    )
    with tracking.start_run(settings, "benchmark", job="benchmark", params={}) as run:
        tracking.register_generator(run, folder / "generator", "cat", labels=["cat"], promote=True)
        tracking.register_classifier(run, folder / "classifier", labels, promote=True)


class Pair:
    """Both models in one process. fast: folded, channels last, bfloat16 where it is native."""

    def __init__(self, folder: Path, *, fast: bool):
        self.generator = load_generator(folder / "generator")[0]
        self.classifier = load_classifier(folder / "classifier")
        self.network: Any = self.generator
        if fast:
            self.network = fast_network(self.generator, [self.latents(1, 0)], CPU)
            self.classifier = fast_classifier(self.classifier, CPU, bf16=computes_bf16(CPU))
        else:
            self.classifier.net.to(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def answer(self, latents: torch.Tensor) -> tuple[Pixels, np.ndarray]:
        """Images (n, S, S, 3) and probabilities (n, labels)."""
        images = to_uint8(self.network(latents))
        return images.permute(0, 2, 3, 1).contiguous().numpy(), self.classifier.probabilities(images).numpy()

    def latents(self, n: int, seed: int) -> torch.Tensor:
        return latents_of(range(seed, seed + n), self.generator.settings.z_dim)


def picture(images: Pixels) -> bytes:
    """A PNG grid as Pillow makes it, at zlib's lowest level."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(encode.grid(images)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def bare(folder: Path, seconds: float) -> dict[str, float]:
    """Images a second of the optimised models without any server, by batch size; one thread a core, as lanes have."""
    threads = len(os.sched_getaffinity(0))
    pair = Pair(folder, fast=True)
    rates = {}
    for size in (1, 4, 8, 16, 32, 64):
        counts = [0] * threads
        latents = pair.latents(size, 0)
        pair.answer(latents)
        end = time.perf_counter() + seconds

        def work(number: int, counts: list[int] = counts, latents: torch.Tensor = latents, end: float = end) -> None:
            torch.set_num_threads(1)
            while time.perf_counter() < end:
                pair.answer(latents)
                counts[number] += len(latents)

        began = time.perf_counter()
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates[str(size)] = sum(counts) / (time.perf_counter() - began)
    return rates


def fastapi_app(folder: Path, *, fast: bool) -> Any:
    """The application that one writes first."""
    from fastapi import FastAPI, Response

    app = FastAPI()
    pair = Pair(folder, fast=fast)
    lock = threading.Lock()  # two networks at once on two cores are slower than one after the other

    @app.get("/v1/sample")
    def sample(label: str, n: int = 16, seed: int = 0) -> Response:
        with lock:
            images, probabilities = pair.answer(pair.latents(n, seed))
        headers = {"X-Probabilities": json.dumps(probabilities.round(4).tolist())}
        return Response(picture(images), media_type="image/png", headers=headers)

    return app


def serve_fastapi(folder: Path, port: int, *, fast: bool) -> None:
    import uvicorn

    uvicorn.run(fastapi_app(folder, fast=fast), port=port, log_level="warning", access_log=False)


def serve_litserve(folder: Path, port: int) -> None:
    import litserve

    from raygan.benchmarks.serve_litserve import Api

    api = Api(str(folder), max_batch_size=16, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)


def serve_raygan(folder: Path, port: int, options: dict[str, Any]) -> None:
    """The service as the `serve_config.yaml` in the folder has it, on a cluster of its own."""
    from raygan.settings import load_yaml

    service = load_yaml(str(folder / "serve_config.yaml"))
    os.environ.update(service["controller_options"]["runtime_env"]["env_vars"])
    import ray
    from ray import serve

    from raygan.serve.app import build

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location=service["proxy_location"], http_options={"host": "127.0.0.1", "port": port})
    arguments = {"storage": str(folder), "tracking_uri": None, "access_log": False, **options}
    serve.run(build(arguments), name="raygan")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()


def main(name: str, folder: str, port: str, options: str = "{}") -> None:
    """Be the server until SIGTERM; `bare` prints its numbers as JSON, `port` being its seconds for each size."""
    if name == "bare":
        print(json.dumps(bare(Path(folder), float(port))))
    elif name in ("fastapi", "fastapi-fast"):
        serve_fastapi(Path(folder), int(port), fast=name == "fastapi-fast")
    elif name == "litserve":
        serve_litserve(Path(folder), int(port))
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        serve_raygan(Path(folder), int(port), json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
