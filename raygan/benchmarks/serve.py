"""`serve` beside its peers: the bare models, plain FastAPI, LitServe, on the same cores with the same models.

The servers (`serve_peers`) run one after another, each in a process of its own, and the same clients ask them for n
images each, as soon as they are answered. Before them `serve run` starts once as a user starts it, on a cluster of its
own. Below the table stands what we aim at and what was measured.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from raygan.benchmarks.http_client import Connection, load
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import ServeBenchmarkSettings
from raygan.errors import RayganError
from raygan.settings import load_yaml

_HOST = "127.0.0.1"

#: Seconds that a server may take to answer for the first time.
_PATIENCE = 180

#: Answers of one server: (n, clients) to its numbers.
Cells = dict[tuple[int, int], dict[str, float]]


def benchmark(settings: ServeBenchmarkSettings, checkout: Path) -> dict[str, Any]:
    """Measure, print a table and the aims, write JSON if asked, and return the numbers. checkout: where jobs/ is."""
    from raygan.benchmarks.serve_peers import make_models

    with tempfile.TemporaryDirectory(prefix="raygan-") as scratch:
        folder = Path(scratch)
        make_models(folder, settings.image_size, settings.width)
        shutil.copy(checkout / "serve_config.yaml", folder)
        bare = _bare(folder, settings.seconds)
        print("bare, images/s by batch: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in bare.items()))
        cold = math.nan
        if "raygan" in settings.servers:
            cold = _cold_start(folder)
            print(f"serve run: ready after {cold:.1f} s", flush=True)
        servers: dict[str, Cells] = {name: _measure(name, folder, settings) for name in settings.servers}
    aims = list(_aims(bare, cold, servers))
    for text in aims:
        print(text)
    result = {
        "machine": machine(),
        "bare": bare,
        "cold_start_seconds": None if math.isnan(cold) else cold,
        "servers": {name: _by_text(rows) for name, rows in servers.items()},
        "aims": aims,
    }
    write_json(settings.json_file, result)
    return result


def _by_text(cells: Cells) -> dict[str, dict[str, float]]:
    return {f"n={n} clients={clients}": row for (n, clients), row in cells.items()}


def _bare(folder: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "raygan.benchmarks.serve_peers", "bare", str(folder), str(seconds / 4)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RayganError(f"the bare models failed: {reason[0]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(name: str, folder: Path, settings: ServeBenchmarkSettings) -> Cells:
    rows: Cells = {}
    with running(name, folder) as (port, cold):
        print(f"{name}: first answer after {cold:.1f} s")
        for n in settings.images:
            for clients in settings.clients:
                seconds = settings.seconds
                asyncio.run(load(_HOST, port, clients, min(2.0, seconds), _request(name, n)))  # warm up
                tally = asyncio.run(load(_HOST, port, clients, seconds, _request(name, n)))
                row = {
                    "requests_per_second": len(tally.seconds) / tally.wall,
                    "images_per_second": n * len(tally.seconds) / tally.wall,
                    **{f"p{q}": 1000 * tally.quantile(q / 100) for q in (50, 95, 99)},
                    "failed": float(sum(tally.statuses.values()) - len(tally.seconds)),
                }
                rows[n, clients] = row
                latency = "  ".join(f"p{q} {row[f'p{q}']:6.0f} ms" for q in (50, 95, 99))
                rates = f"{row['images_per_second']:7.0f} images/s {row['requests_per_second']:6.0f} requests/s"
                failed = f"  {row['failed']:.0f} failed" if row["failed"] else ""
                print(f"{name:13} n={n:<3} clients={clients:<3} {rates}  {latency}{failed}", flush=True)
    return rows


def _request(name: str, n: int) -> Callable[[int, int], tuple[str, bytes | None]]:
    def request(client: int, count: int) -> tuple[str, bytes | None]:
        seed = 100_000 * client + 64 * count
        if name == "litserve":
            return "/predict", json.dumps({"n": n, "seed": seed}).encode()
        return f"/v1/sample?label=cat&n={n}&seed={seed}", None

    return request


def _cold_start(folder: Path) -> float:
    """Seconds from `serve run`, with the file that we ship, until /readyz says that every model is loaded."""
    port = free_port()
    service = load_yaml(str(folder / "serve_config.yaml"))
    service["http_options"]["port"] = port
    service["applications"][0]["args"] = {"storage": str(folder), "tracking_uri": None, "access_log": False}
    file = folder / "cold_start.yaml"
    file.write_text(json.dumps(service))  # which is YAML too
    program = Path(sys.executable).with_name("serve")
    with _process("serve run", [str(program), "run", "--address", "local", str(file)], port, "/readyz") as seconds:
        return seconds


@contextmanager
def running(name: str, folder: Path, options: dict[str, Any] | None = None) -> Iterator[tuple[int, float]]:
    """A server for the length of a `with` block: its port, and the seconds until its first answer."""
    port = free_port()
    command = [sys.executable, "-m", "raygan.benchmarks.serve_peers", name, str(folder), str(port)]
    with _process(name, [*command, json.dumps(options or {})], port, *_request(name, 1)(0, 0)) as seconds:
        yield port, seconds


@contextmanager
def _process(name: str, command: list[str], port: int, path: str, body: bytes | None = None) -> Iterator[float]:
    """A process for the length of a `with` block: the seconds until the request is answered 200 at its port."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a benchmark that is ended ends its server too
    environment = {name: value for name, value in os.environ.items() if name != "RAYGAN_TOKEN"}  # clients have none
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            while asyncio.run(_status(port, path, body)) != 200:
                if process.poll() is not None or time.perf_counter() - began > _PATIENCE:
                    said.seek(0)
                    last = said.read().decode("utf-8", "replace").strip().splitlines()[-3:]
                    raise RayganError(f"{name} did not start: {' / '.join(last)}")
                time.sleep(0.1)
            yield time.perf_counter() - began
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started: some leave their workers behind."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()


async def _status(port: int, path: str, body: bytes | None) -> int:
    connection = Connection(_HOST, port)
    answer = await connection.ask(path, body)
    connection.close()
    return answer.status


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _aims(bare: dict[str, float], cold: float, servers: dict[str, Cells]) -> Iterator[str]:
    """What we aim at, and what was measured; NaN where that wasn't."""

    def number(server: str, n: int, clients: int | None, key: str) -> float:
        rows = [row for (m, c), row in servers.get(server, {}).items() if m == n and clients in (None, c)]
        return max((row[key] for row in rows), default=math.nan)

    def best(server: str, n: int) -> float:
        return number(server, n, None, "images_per_second")

    def aim(text: str, found: float, wanted: float, *, most: bool = False) -> str:
        met = "?" if math.isnan(found) else "met" if (found <= wanted if most else found >= wanted) else "missed"
        return f"aim: {text}: {found:.2f} ({met})"

    limit = max(bare.values())
    yield aim("n=16, at least 3 times plain FastAPI", best("raygan", 16) / best("fastapi", 16), 3)
    yield aim("n=16, at least 1.5 times FastAPI with our models", best("raygan", 16) / best("fastapi-fast", 16), 1.5)
    yield aim("n=16, at least 0.85 of the bare models", best("raygan", 16) / limit, 0.85)
    rate = "requests_per_second"
    ours = number("raygan", 1, 32, rate)
    yield aim("n=1, 32 clients, at least 6 times plain FastAPI", ours / number("fastapi", 1, 32, rate), 6)
    yield aim("n=1, 32 clients, ahead of LitServe", ours / number("litserve", 1, 32, rate), 1)
    share = number("raygan", 1, 1, "p50") / number("fastapi", 1, 1, "p50")
    yield aim("n=1, one client, p50 no more than plain FastAPI's", share, 1, most=True)
    yield aim("seconds from `serve run` to ready, under 25", cold, 25, most=True)
