"""The servers that `benchmark serve` compares, each in its own process: python -m raygan.benchmarks.serve_peers NAME.

All have the same generator and the same classifier, and answer with a PNG grid and the probabilities.

    bare           no server: the optimized models, one thread a core; the limit for everything else
    memory         no server: what a replica of raygan's models takes
    fastapi        FastAPI under uvicorn as people first write it: models as they are, a lock, no batching
    fastapi-fast   the same with our optimized models
    litserve       LitServe with batching and our optimized models
    raygan         the service behind HAProxy, as `raygan serve` starts it on Linux
    raygan-proxies the service behind Serve's Python proxies
    composed       the graph as Ray Serve's documentation would write it (`serve_composed`), behind HAProxy
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from raygan.benchmarks.clients import HOST
from raygan.benchmarks.serve_models import Pair, picture


def bare(folder: Path, seconds: float) -> dict[str, float]:
    """Images/s of the optimized models without a server, by batch size; one thread a core, as the replicas have."""
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


def memory(folder: Path) -> dict[str, float]:
    """Megabytes of a replica with the classifier and one label, and of each further label; both have drawn images."""
    import asyncio

    import psutil

    from raygan.serve.messages import ModelVersion, SampleRequest
    from raygan.serve.model_store import Files
    from raygan.serve.replicas import Replica
    from raygan.serve.settings import ServeSettings

    async def fetch(model: ModelVersion) -> Files:
        return {path.name: path.read_bytes() for path in (folder / model.name).iterdir()}

    async def measure() -> list[float]:
        replica = Replica(ServeSettings(storage="unused", tracking_uri=None, batch_images=16), fetch)
        judge = ModelVersion("classifier", "1")
        sizes = []
        for number in range(1, 6):
            model = ModelVersion("generator", str(number))  # the same files, which the replica can't know
            await replica.draw(model, SampleRequest("cat", tuple(range(64)), judge=judge))
            sizes.append(psutil.Process().memory_full_info().uss / 1e6)
        return sizes

    sizes = asyncio.run(measure())
    return {"replica": sizes[0], "label": (sizes[-1] - sizes[1]) / 3}  # the second still fills the allocator's gaps


def fastapi_app(folder: Path, *, fast: bool) -> Any:
    """The application as people first write it."""
    from fastapi import FastAPI, Response

    app = FastAPI()
    pair = Pair(folder, fast=fast)
    lock = threading.Lock()  # on two cores, two networks at once are slower than one after the other

    @app.get("/v1/sample")
    def sample(label: str, n: int = 16, seed: int = 0) -> Response:
        with lock:
            images, probabilities = pair.answer(pair.latents(n, seed))
        headers = {"X-Probabilities": json.dumps(probabilities.round(4).tolist())}
        return Response(picture(images), media_type="image/png", headers=headers)

    return app


def serve_fastapi(folder: Path, port: int, *, fast: bool) -> None:
    """Serve `fastapi_app` until the process is ended."""
    import uvicorn

    uvicorn.run(fastapi_app(folder, fast=fast), port=port, log_level="warning", access_log=False)


def serve_litserve(folder: Path, port: int) -> None:
    """Serve the same folder by LitServe until the process is ended."""
    import litserve

    from raygan.benchmarks.serve_litserve import Api

    api = Api(str(folder), max_batch_size=16, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host=HOST, port=port, generate_client_file=False, log_level="warning", access_log=False)


def serve_raygan(name: str, folder: Path, port: int, options: dict[str, Any]) -> None:
    """The service as the folder's `serve_config.yaml` describes it, or the composed graph, on a cluster of its own."""
    from raygan.serve import haproxy
    from raygan.settings import load_yaml

    service = load_yaml(str(folder / "serve_config.yaml"))
    os.environ.update(service["controller_options"]["runtime_env"]["env_vars"])
    os.environ[haproxy.ENABLED] = "1" if name in ("raygan", "composed") else "0"
    if own := haproxy.program():
        os.environ[haproxy.BINARY] = own
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location=service["proxy_location"], http_options={"host": HOST, "port": port})
    from raygan.benchmarks.serve_composed import build_composed
    from raygan.serve.app import build

    arguments = {"storage": str(folder), "tracking_uri": None, "access_log": False, **options}
    serve.run(build_composed(folder) if name == "composed" else build(arguments), name="raygan")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()


def main(name: str, folder: str, port: str, options: str = "{}") -> None:
    """Serve until SIGTERM. `bare` and `memory` print numbers as JSON instead; `port` is the seconds for each size."""
    if name == "bare":
        print(json.dumps(bare(Path(folder), float(port))))
    elif name == "memory":
        print(json.dumps(memory(Path(folder))))
    elif name in ("fastapi", "fastapi-fast"):
        serve_fastapi(Path(folder), int(port), fast=name == "fastapi-fast")
    elif name == "litserve":
        serve_litserve(Path(folder), int(port))
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        serve_raygan(name, Path(folder), int(port), json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
