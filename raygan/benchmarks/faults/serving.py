"""The drill of the service: replicas on two nodes, clients that compare every image, and one node less.

The gateway is kept on the head's node, since whoever is connected to a gateway that dies is a load balancer's
business. Everything that computes runs once on each node, so that half of it is lost.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from raygan.benchmarks.faults.harness import Nodes, Stage
from raygan.benchmarks.faults.outcome import Found
from raygan.benchmarks.http_client import Answer, Connection
from raygan.benchmarks.serve import free_port
from raygan.benchmarks.serve_peers import make_models
from raygan.runtime.progress import InBackground
from raygan.settings import load_yaml

_HOST = "127.0.0.1"

#: Clients, and the seconds that each waits between two requests: a light load.
_CLIENTS, _PAUSE_S = 4, 0.1

#: Seconds in which both generator replicas must have drawn, and the share of the work that each has at least.
_LOOK_S, _LEAST_SHARE = 8.0, 0.15

#: What clients ask for.
_ASKED = [f"/v1/sample?label=cat&n=4&seed={seed}&format=npz" for seed in range(0, 800, 100)]

_GENERATOR, _CLASSIFIER = "generator-cat", "Classifier"

#: Ray's own resource of the node with the head.
_WITH_HEAD = {"node:__internal_head__": 0.001}


@dataclass
class _Tally:
    """What clients have seen. told_to_wait: 503 with Retry-After. wrong: any other answer that isn't right."""

    right: int = 0
    told_to_wait: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


class _Clients:
    """Clients in a thread of their own, for the length of a `with` block, which raises what ends them before.

    known: the right images by path.
    """

    def __init__(self, port: int, known: dict[str, np.ndarray]):
        self.tally = _Tally()
        self._port, self._known = port, known
        self._over = threading.Event()

    def __enter__(self) -> _Clients:
        self._work = InBackground(lambda: asyncio.run(self._all()), "the clients' work")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._work.result()

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(_CLIENTS)))

    async def _one(self, number: int) -> None:
        connection, count = Connection(_HOST, self._port), number
        while not self._over.is_set():
            path = _ASKED[count % len(_ASKED)]
            answer = await connection.ask(path)
            count += 1
            tally = self.tally
            tally.slowest = max(tally.slowest, answer.seconds)
            if answer.status == 200 and _holds(answer, self._known[path]):
                tally.right += 1
            elif answer.status == 503 and "retry-after" in answer.headers:
                tally.told_to_wait += 1
            else:
                tally.wrong.append(f"{path}: {answer.status}")
            await asyncio.sleep(_PAUSE_S)
        connection.close()


def lose_serving_node(stage: Stage) -> Found:
    """A node is lost with half of the replicas, and another comes at once."""
    folder, port = stage.folder / "served", free_port()
    folder.mkdir()
    make_models(folder, 64, 16)
    description = folder / "service.yaml"
    description.write_text(yaml.safe_dump(_service(stage.checkout, folder, port)), encoding="utf-8")
    with stage.nodes(2, 1) as nodes:
        job = stage.job("serve", nodes, ["serve.py", "--service", str(description)], storage=folder)
        job.wait_for(lambda: _is_full(nodes, port, gone=""), "full service")
        generators = _replicas(nodes, _GENERATOR)
        known = {path: _images(asyncio.run(_ask(port, path))) for path in _ASKED}
        with _Clients(port, known) as clients:
            shares = _shares([int(each["pid"]) for each in generators])
            before, clients.tally = clients.tally, _Tally()
            began = time.monotonic()
            lost = nodes.kill_last()
            nodes.add(1)
            job.wait_for(lambda: _is_full(nodes, port, gone=lost), "full service after the fault")
            full_after = time.monotonic() - began
            time.sleep(2)  # and it must stay so
        after = clients.tally
    return Found(
        checks={
            "replicas on two nodes": len({each["node_id"] for each in generators}) == len(generators) == 2,
            "both draw, and the same images for the same seeds": min(shares) >= _LEAST_SHARE and _all_right(before),
            "no wrong answer when one is gone": after.right > 0 and not after.wrong,
        },
        notes=[
            f"full service again after {full_after:.1f} s",
            f"{after.right} answers right, {after.told_to_wait} told to come back, {len(after.wrong)} wrong; "
            f"the slowest took {after.slowest:.1f} s",
            *after.wrong[:1],
        ],
    )


def _service(checkout: Path, folder: Path, port: int) -> dict[str, Any]:
    """The project's description of the service, with what computes once on each node."""
    service = load_yaml(str(checkout / "serve_config.yaml"))
    service["http_options"] = {"host": _HOST, "port": port}
    (application,) = service["applications"]
    application["args"] = {"storage": str(folder), "tracking_uri": None, "poll_seconds": 1.0, "access_log": False}
    twice = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.4}}
    at_head = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1, "resources": _WITH_HEAD}}
    application["deployments"] = [
        *({"name": name, **twice} for name in (_GENERATOR, _CLASSIFIER)),
        *({"name": name, **at_head} for name in ("Gateway", "Registry")),
    ]
    return service


def _replicas(nodes: Nodes, deployment: str) -> list[dict[str, Any]]:
    """The replicas that Serve has running: their node_id and pid."""
    try:
        details = ServeSubmissionClient(nodes.dashboard).get_serve_details()
    except (RuntimeError, OSError):  # Serve's controller is busy with something else
        return []
    deployments = details.get("applications", {}).get("raygan", {}).get("deployments", {})
    replicas = deployments.get(deployment, {}).get("replicas", [])
    return [replica for replica in replicas if replica["state"] == "RUNNING"]


def _is_full(nodes: Nodes, port: int, *, gone: str) -> bool:
    """Whether everything that computes runs twice, none of it on the node that is gone, and requests are answered."""
    for deployment in (_GENERATOR, _CLASSIFIER):
        places = [replica["node_id"] for replica in _replicas(nodes, deployment)]
        if len(places) != 2 or gone in places:
            return False
    return {asyncio.run(_ask(port, path)).status for path in ("/readyz", _ASKED[0])} == {200}


def _shares(pids: list[int]) -> list[float]:
    """Each process's share of the time that they compute in a while."""
    processes = [psutil.Process(pid) for pid in pids]
    before = [_computed(process) for process in processes]
    time.sleep(_LOOK_S)
    spent = [_computed(process) - start for process, start in zip(processes, before, strict=True)]
    return [each / max(sum(spent), 1e-9) for each in spent]


def _computed(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _all_right(tally: _Tally) -> bool:
    return tally.right > 0 and not tally.wrong


async def _ask(port: int, path: str) -> Answer:
    connection = Connection(_HOST, port)
    answer = await connection.ask(path)
    connection.close()
    return answer


def _holds(answer: Answer, images: np.ndarray) -> bool:
    """Whether an answer holds these images."""
    try:
        return np.array_equal(_images(answer), images)
    except Exception:  # whatever NumPy raises for a body that is something else
        return False


def _images(answer: Answer) -> np.ndarray:
    """The images of an answer, or none if it has none."""
    if answer.status != 200:
        return np.empty(0)
    return np.asarray(np.load(io.BytesIO(answer.body))["images"])
