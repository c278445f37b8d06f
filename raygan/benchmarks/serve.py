"""`serve` beside its peers: plain FastAPI, LitServe and the bare models, with the same models on the same cores.

The servers (`serve_peers`) run one after another, each in its own process, and the same clients ask each of them as
fast as it answers. After that, `serve run` starts once, as a user starts it, on its own cluster, and gets new labels.
Below the table each aim stands beside the number measured.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raygan.benchmarks.clients import Answer, Request, ask_once, keep_asking
from raygan.benchmarks.processes import output_of
from raygan.benchmarks.results import checkout, machine, write_json
from raygan.benchmarks.servers import free_port, running
from raygan.benchmarks.settings import ServeBenchmarkSettings
from raygan.errors import RayganError
from raygan.settings import load_yaml

#: Labels promoted while the service runs, and seconds until one must be served.
_NEW_LABELS, _LABEL_SECONDS = 5, 120.0

#: Numbers of one server by (images in a request, clients).
Cells = dict[tuple[int, int], dict[str, float]]


def benchmark(settings: ServeBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table and the aims, write JSON if asked, and return the numbers."""
    from raygan.benchmarks.serve_models import make_models

    with tempfile.TemporaryDirectory(prefix="raygan-") as scratch:
        folder = Path(scratch)
        shutil.copy(checkout() / "serve_config.yaml", folder)
        make_models(folder, settings.image_size, settings.width)
        bare = measure_bare_models(folder, settings.seconds)
        print("bare, images/s by batch: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in bare.items()))
        cold, memory = math.nan, {}
        labels: list[float] = []
        if "raygan" in settings.servers:
            memory = _numbers_of("memory", "a replica's memory could not be measured", folder, 0)
            print(f"memory of a replica: {memory['replica']:.0f} MB, and {memory['label']:.0f} MB per further label")
        servers: dict[str, Cells] = {name: _measure(name, folder, settings) for name in _present(settings.servers)}
        if "raygan" in settings.servers:  # last: the others have fewer labels to load
            cold, labels = _starts(folder)
            print(f"serve run: ready after {cold:.1f} s; a new label after {min(labels):.1f} to {max(labels):.1f} s")
    reached = list(aims(bare, cold, servers))
    for text in reached:
        print(text)
    result = {
        "machine": machine(),
        "bare": bare,
        "memory": memory,
        "cold_start_seconds": cold,
        "new_label_seconds": labels,
        "servers": {
            name: {f"n={n} clients={clients}": row for (n, clients), row in cells.items()}
            for name, cells in servers.items()
        },
        "aims": reached,
    }
    write_json(settings.json_file, result)
    return result


def measure_bare_models(folder: Path, seconds: float) -> dict[str, float]:
    """Images/s of the models without a server, by batch size, measured in a process of its own."""
    return _numbers_of("bare", "the bare models failed", folder, seconds / 4)


def _numbers_of(name: str, failure: str, folder: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "raygan.benchmarks.serve_peers", name, str(folder), str(seconds)]
    return dict(json.loads(output_of(failure, command).splitlines()[-1]))


def peer(name: str, folder: Path, port: int, options: dict[str, Any] | None = None) -> AbstractContextManager[float]:
    """One of the servers for the length of a `with` block, which gets the seconds until its first answer.

    Args:
        name: as in `serve_peers`.
        folder: where `make_models` put the models; for raygan, with `serve_config.yaml`.
        port: where it listens.
        options: raygan's own, beside those of its configuration.
    """
    command = [sys.executable, "-m", "raygan.benchmarks.serve_peers", name, str(folder), str(port)]
    return running(name, [*command, json.dumps(options or {})], port, _request(name, 1, seed=0))


def _present(servers: Sequence[str]) -> Iterator[str]:
    for name in servers:
        if name == "litserve" and not importlib.util.find_spec("litserve"):
            print("litserve: left out, it is not installed: pip install -e '.[benchmark]'")
        else:
            yield name


def _measure(name: str, folder: Path, settings: ServeBenchmarkSettings) -> Cells:
    cells: Cells = {}
    port = free_port()
    with peer(name, folder, port) as cold:
        print(f"{name}: first answer after {cold:.1f} s")
        for n, clients in itertools.product(settings.images, settings.clients):
            asyncio.run(_load(name, port, n, clients, min(2.0, settings.seconds)))  # warm up
            times = asyncio.run(_load(name, port, n, clients, settings.seconds))
            row = cells[n, clients] = {
                "requests_per_second": len(times.seconds) / times.wall,
                "images_per_second": n * len(times.seconds) / times.wall,
                **{f"p{q}": 1000 * times.quantile(q / 100) for q in (50, 95, 99)},
                "failed": float(times.failed),
            }
            latency = "  ".join(f"p{q} {row[f'p{q}']:6.0f} ms" for q in (50, 95, 99))
            rates = f"{row['images_per_second']:7.0f} images/s {row['requests_per_second']:6.0f} requests/s"
            failed = f"  {times.failed} failed" if times.failed else ""
            print(f"{name:13} n={n:<3} clients={clients:<3} {rates}  {latency}{failed}", flush=True)
    return cells


@dataclass
class _Times:
    """Seconds of each answer with status 200, number of the others, and seconds of the whole measurement."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    wall: float = 0.0

    def hear(self, request: Request, answer: Answer) -> float:
        if answer.status == 200:
            self.seconds.append(answer.seconds)
        else:
            self.failed += 1
        return 0.0

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers came; NaN if there were none."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


async def _load(name: str, port: int, n: int, clients: int, seconds: float) -> _Times:
    """Have `clients` clients ask as fast as they are answered."""

    def requests(client: int) -> Iterator[Request]:
        return (_request(name, n, seed=100_000 * client + 64 * count) for count in itertools.count())

    times = _Times()
    began = time.perf_counter()

    def over() -> bool:
        return time.perf_counter() > began + seconds

    await asyncio.gather(*(keep_asking(port, requests(client), times.hear, over) for client in range(clients)))
    times.wall = time.perf_counter() - began
    return times


def _request(name: str, n: int, seed: int) -> Request:
    if name == "litserve":
        return Request("/predict", json.dumps({"n": n, "seed": seed}).encode())
    return Request(f"/v1/sample?label=cat&n={n}&seed={seed}")


def _starts(folder: Path) -> tuple[float, list[float]]:
    """Times of `serve run` with the shipped configuration.

    Returns:
        Seconds until /readyz reports every model loaded, and seconds from the promotion of each of a few new labels
        until it is served.
    """
    from raygan.benchmarks.serve_models import promote_label

    port = free_port()
    service = load_yaml(str(folder / "serve_config.yaml"))
    service["http_options"]["port"] = port
    service["applications"][0]["args"] = {"storage": str(folder), "tracking_uri": None, "access_log": False}
    file = folder / "cold_start.yaml"
    file.write_text(json.dumps(service))  # JSON is YAML
    program = Path(sys.executable).with_name("serve")
    command = [str(program), "run", "--address", "local", str(file)]
    labels = []
    with running("serve run", command, port, Request("/readyz")) as seconds:
        for number in range(_NEW_LABELS):
            time.sleep(number)  # the service has just looked for new versions, and looks again every 5 s
            promote_label(folder, f"label{number}")
            began = time.perf_counter()
            while ask_once(port, Request(f"/v1/sample?label=label{number}")).status != 200:
                if time.perf_counter() - began > _LABEL_SECONDS:
                    raise RayganError(f"a new label is not served within {_LABEL_SECONDS:g} s")
                time.sleep(0.1)
            labels.append(time.perf_counter() - began)
    return seconds, labels


def aims(bare: dict[str, float], cold: float, servers: dict[str, Cells]) -> Iterator[str]:
    """Each aim with the number measured; NaN where it wasn't, or where every answer of the other failed."""

    def number(server: str, n: int, clients: int | None, key: str) -> float:
        rows = [row for (m, c), row in servers.get(server, {}).items() if m == n and clients in (None, c)]
        return max((row[key] for row in rows), default=math.nan)

    def best(server: str, n: int) -> float:
        return number(server, n, None, "images_per_second")

    def ratio(first: float, second: float) -> float:
        return first / second if second else math.nan

    def aim(text: str, found: float, wanted: float, *, most: bool = False) -> str:
        met = "?" if math.isnan(found) else "met" if (found <= wanted if most else found >= wanted) else "missed"
        return f"aim: {text}: {found:.2f} ({met})"

    limit = max(bare.values())
    rate = "requests_per_second"
    yield aim("n=16, at least 3 times plain FastAPI", ratio(best("raygan", 16), best("fastapi", 16)), 3)
    yield aim("n=16, at least 0.85 of the bare models", ratio(best("raygan", 16), limit), 0.85)
    ours = {clients: number("raygan", 1, clients, rate) for clients in (8, 32)}
    yield aim("n=1, 32 clients, at least 5 times plain FastAPI", ratio(ours[32], number("fastapi", 1, 32, rate)), 5)
    for clients, found in ours.items():
        for title, other in (("LitServe", "litserve"), ("raygan-proxies", "raygan-proxies"), ("composed", "composed")):
            yield aim(f"n=1, {clients} clients, ahead of {title}", ratio(found, number(other, 1, clients, rate)), 1)
    share = ratio(number("raygan", 1, 1, "p50"), number("fastapi", 1, 1, "p50"))
    yield aim("n=1, one client, p50 no more than plain FastAPI's", share, 1, most=True)
    yield aim("seconds from `serve run` to ready, under 25", cold, 25, most=True)
