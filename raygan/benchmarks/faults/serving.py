"""The drill of the service: gateways and replicas on two nodes, clients that compare every image, a node that dies and
one that is drained.

Each node listens on a port of its own, and its clients ask only there, as if a load balancer had sent them. Everything
that computes runs once on each node, so half of it is lost.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

# Reads Ray's REST API of Serve (GET /api/serve/applications/) with the token that a cluster may want. `serve.status()`
# would replace it if it told each replica's node and process.
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from raygan.benchmarks.clients import HOST, Answer, Request, Tally, ask_once, keep_asking
from raygan.benchmarks.faults.harness import Job, Stage
from raygan.benchmarks.faults.known_answers import ask_alone, same
from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.faults.outcome import Outcome
from raygan.benchmarks.serve_models import make_models
from raygan.benchmarks.servers import free_port
from raygan.runtime.progress import InBackground
from raygan.serve import haproxy
from raygan.settings import load_yaml

#: Number of clients of a node, and the seconds that each pauses between two requests: a light load.
_CLIENTS, _PAUSE_S = 2, 0.1

#: Seconds within which both replicas must draw, and the least share of the work for each.
_LOOK_S, _LEAST_SHARE = 8.0, 0.15

#: What clients ask for.
REQUESTS = [Request(f"/v1/sample?label=cat&n=4&seed={seed}&format=npz") for seed in range(0, 800, 100)]

#: What runs on every node.
_TWICE = ("Models", "Gateway")

#: Ray's own resource of the head's node.
_WITH_HEAD = {"node:__internal_head__": 0.001}

#: Ray's variables for several nodes on one machine: where a node without the head listens, and its HAProxy besides.
_PORT = "RAY_SERVE_WORKER_PROXY_HTTP_PORT"
_FURTHER_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")

#: Seconds of notice before a drained node goes.
_NOTICE_S = 90


class Clients:
    """Clients that ask in a thread of their own during a `with` block. The block's end raises what went wrong there."""

    def __init__(self, port: int, known: dict[Request, bytes]):
        """Take what the clients need.

        Args:
            port: the service's.
            known: the body of the right answer to each request.
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
        known = self._known[request]
        self.tally.count(request, answer, lambda: same(request, answer.body, known))
        return _PAUSE_S


def lose_serving_node(stage: Stage) -> Outcome:
    """Lose a node with half of the service, add another, and drain that."""
    folder, (first, second, third) = stage.folder / "served", [free_port() for _ in range(3)]
    folder.mkdir()
    make_models(folder, 64, 16)
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(service_config(stage.checkout, folder, first)), encoding="utf-8")
    with stage.nodes(2, env=_ingress()) as nodes:
        nodes.add(1, _ports(second))
        job = stage.job("serve", nodes, ["serve.py", "--service", str(config)], storage=folder)
        job.wait_for(lambda: _is_full(nodes, first, second), "full service")
        models = _replicas(nodes, _TWICE[0])
        known = asyncio.run(ask_alone(first, REQUESTS))
        with Clients(first, known) as staying:
            with Clients(second, known) as lost:
                shares = _shares([int(each["pid"]) for each in models])
                staying.tally.gateway_is_dead = lost.tally.gateway_is_dead = True  # an answer may be cut midway
                began = time.monotonic()
                gone = nodes.kill_last()
            nodes.add(1, _ports(third))
            job.wait_for(lambda: _is_full(nodes, first, third, gone=gone), "full service after the fault")
            full_after = time.monotonic() - began
            staying.tally.gateway_is_dead = False
            leaves_well = _drain(job, nodes, third, known)
    tally = staying.tally
    return Outcome(
        checks={
            "both nodes draw, and the same images for the same seeds": (
                min(shares) >= _LEAST_SHARE and lost.tally.right > 0 and not lost.tally.wrong
            ),
            "no wrong answer by the node that stays": tally.right > 0 and not tally.wrong,
            "a drained node says so while it still answers": leaves_well,
        },
        notes=[
            f"full service again after {full_after:.1f} s",
            f"{tally.right} answers right, {tally.turned_away} told to come back, {tally.cut} cut, "
            f"{len(tally.wrong)} wrong; the slowest took {tally.slowest:.1f} s",
            *[*tally.wrong, *lost.tally.wrong][:1],
        ],
    )


def _drain(job: Job, nodes: Nodes, port: int, known: dict[Request, bytes]) -> bool:
    """Drain the newest node. Whether its clients get right answers until its health checks fail, and a while longer."""
    with Clients(port, known) as leaving:
        job.wait_for(lambda: leaving.tally.right, "answers by the new node")
        nodes.warn_last(_NOTICE_S)
        job.wait_for(lambda: _status(port, "/-/healthz") == 503, "word that the node is drained")
        is_ready = _status(port, "/readyz") == 200
        before = leaving.tally.right
        job.wait_for(lambda: leaving.tally.right > before, "answers by the drained node")
    job.wait_for(lambda: _status(port, "/-/healthz") == 0, "the end of the drained node's listener")
    return not is_ready and not leaving.tally.wrong


def _ingress() -> dict[str, str]:
    """Variables of every node: HAProxy listens where it can be had, as with `raygan serve`."""
    program = haproxy.program()
    return {haproxy.ENABLED: "1", haproxy.BINARY: program} if program else {}


def _ports(port: int) -> dict[str, str]:
    """Variables of a node that listens on this port."""
    return {_PORT: str(port), **{name: str(free_port()) for name in _FURTHER_PORTS}}


def _status(port: int, path: str) -> int:
    return ask_once(port, Request(path)).status


def service_config(checkout: Path, folder: Path, port: int) -> dict[str, Any]:
    """The checkout's configuration of the service, changed so that everything that computes runs once per node."""
    service = load_yaml(str(checkout / "serve_config.yaml"))
    service["http_options"] = {"host": HOST, "port": port}
    (application,) = service["applications"]
    application["args"] = {"storage": str(folder), "tracking_uri": None, "poll_seconds": 1.0, "access_log": False}
    twice = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.4}}
    at_head = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1, "resources": _WITH_HEAD}}
    application["deployments"] = [*({"name": name, **twice} for name in _TWICE), {"name": "Registry", **at_head}]
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


def _is_full(nodes: Nodes, *ports: int, gone: str = "") -> bool:
    """Whether everything that computes runs on two nodes, not on the lost one, and each port is ready and answers."""
    for name in _TWICE:
        places = {replica["node_id"] for replica in _replicas(nodes, name)}
        if len(places) != 2 or gone in places:
            return False
    paths = ("/-/healthz", "/readyz", REQUESTS[0].path)
    return {_status(port, path) for port in ports for path in paths} == {200}


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
