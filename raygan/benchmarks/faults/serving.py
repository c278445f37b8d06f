"""The drill of the service: replicas on two nodes, clients that compare every image, and a node that dies.

The gateway stays on the head's node: clients of a gateway that dies are the business of a load balancer. Everything
that computes runs once on each node, so half of it is lost.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

# Reads Ray's REST API of Serve (GET /api/serve/applications/) with the token that a cluster may want. `serve.status()`
# would replace it if it told each replica's node and process.
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from raygan.benchmarks.clients import HOST, Answer, Request, Tally, ask_once, keep_asking
from raygan.benchmarks.faults.harness import Stage
from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.faults.outcome import Outcome
from raygan.benchmarks.serve_models import make_models
from raygan.benchmarks.servers import free_port
from raygan.runtime.progress import InBackground
from raygan.settings import load_yaml

#: Number of clients, and the seconds that each pauses between two requests: a light load.
_CLIENTS, _PAUSE_S = 4, 0.1

#: Seconds within which both replicas must draw, and the least share of the work for each.
_LOOK_S, _LEAST_SHARE = 8.0, 0.15

#: What clients ask for.
REQUESTS = [Request(f"/v1/sample?label=cat&n=4&seed={seed}&format=npz") for seed in range(0, 800, 100)]

_MODELS = "Models"

#: Ray's own resource of the head's node.
_WITH_HEAD = {"node:__internal_head__": 0.001}


class Clients:
    """Clients that ask in a thread of their own during a `with` block. The block's end raises what went wrong there."""

    def __init__(self, port: int, known: dict[Request, np.ndarray]):
        """Take what the clients need.

        Args:
            port: the service's.
            known: the correct images for each request.
        """
        self.tally = Tally()
        self._port, self._known = port, known
        self._over = threading.Event()

    def __enter__(self) -> Clients:
        self._work = InBackground(lambda: asyncio.run(self._all()), "the clients' work")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._work.result()

    async def _all(self) -> None:
        rounds = [REQUESTS[number:] + REQUESTS[:number] for number in range(_CLIENTS)]
        await asyncio.gather(
            *(keep_asking(self._port, itertools.cycle(each), self._hear, self._over.is_set) for each in rounds)
        )

    def _hear(self, request: Request, answer: Answer) -> float:
        self.tally.count(request, answer, lambda: _holds(answer, self._known[request]))
        return _PAUSE_S


def lose_serving_node(stage: Stage) -> Outcome:
    """Lose a node with half of the replicas, and add another at once."""
    folder, port = stage.folder / "served", free_port()
    folder.mkdir()
    make_models(folder, 64, 16)
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(service_config(stage.checkout, folder, port)), encoding="utf-8")
    with stage.nodes(2, 1) as nodes:
        job = stage.job("serve", nodes, ["serve.py", "--service", str(config)], storage=folder)
        job.wait_for(lambda: _is_full(nodes, port, gone=""), "full service")
        replicas = _replicas(nodes, _MODELS)
        known = {request: _images(ask_once(port, request)) for request in REQUESTS}
        with Clients(port, known) as clients:
            shares = _shares([int(each["pid"]) for each in replicas])
            before, clients.tally = clients.tally, Tally()
            began = time.monotonic()
            lost = nodes.kill_last()
            nodes.add(1)
            job.wait_for(lambda: _is_full(nodes, port, gone=lost), "full service after the fault")
            full_after = time.monotonic() - began
            time.sleep(2)  # it must stay so
        after = clients.tally
    return Outcome(
        checks={
            "replicas on two nodes": len({each["node_id"] for each in replicas}) == len(replicas) == 2,
            "both draw, and the same images for the same seeds": (
                min(shares) >= _LEAST_SHARE and before.right > 0 and not before.wrong
            ),
            "no wrong answer after the loss": after.right > 0 and not after.wrong,
        },
        notes=[
            f"full service again after {full_after:.1f} s",
            f"{after.right} answers right, {after.turned_away} told to come back, {len(after.wrong)} wrong; "
            f"the slowest took {after.slowest:.1f} s",
            *after.wrong[:1],
        ],
    )


def service_config(checkout: Path, folder: Path, port: int) -> dict[str, Any]:
    """The checkout's configuration of the service, changed so that everything that computes runs once per node."""
    service = load_yaml(str(checkout / "serve_config.yaml"))
    service |= {"http_options": {"host": HOST, "port": port}, "proxy_location": "HeadOnly"}
    (application,) = service["applications"]
    application["args"] = {"storage": str(folder), "tracking_uri": None, "poll_seconds": 1.0, "access_log": False}
    twice = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.4}}
    at_head = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1, "resources": _WITH_HEAD}}
    application["deployments"] = [
        {"name": _MODELS, **twice},
        *({"name": name, **at_head} for name in ("Gateway", "Registry")),
    ]
    return service


def _replicas(nodes: Nodes, deployment: str) -> list[dict[str, Any]]:
    """The running replicas of a deployment, each with node_id and pid."""
    try:
        details = ServeSubmissionClient(nodes.dashboard).get_serve_details()
    except (RuntimeError, OSError):  # Serve's controller is busy
        return []
    deployments = details.get("applications", {}).get("raygan", {}).get("deployments", {})
    replicas = deployments.get(deployment, {}).get("replicas", [])
    return [replica for replica in replicas if replica["state"] == "RUNNING"]


def _is_full(nodes: Nodes, port: int, *, gone: str) -> bool:
    """Whether everything that computes runs twice, never on the lost node, and requests are answered."""
    places = [replica["node_id"] for replica in _replicas(nodes, _MODELS)]
    if len(places) != 2 or gone in places:
        return False
    return {ask_once(port, request).status for request in (Request("/readyz"), REQUESTS[0])} == {200}


def _shares(pids: list[int]) -> list[float]:
    """Each process's share of the CPU time that they spend together in a while."""
    processes = [psutil.Process(pid) for pid in pids]
    before = [_cpu_seconds(process) for process in processes]
    time.sleep(_LOOK_S)
    spent = [_cpu_seconds(process) - start for process, start in zip(processes, before, strict=True)]
    return [each / max(sum(spent), 1e-9) for each in spent]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _holds(answer: Answer, images: np.ndarray) -> bool:
    """Whether an answer holds exactly these images."""
    try:
        return np.array_equal(_images(answer), images)
    except Exception:  # NumPy raises anything for a body that isn't an archive
        return False


def _images(answer: Answer) -> np.ndarray:
    """The images in an answer, or none if it failed."""
    if answer.status != 200:
        return np.empty(0)
    return np.asarray(np.load(io.BytesIO(answer.body))["images"])
