"""Ray nodes on this machine, which drills lose, take away and add."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

# Ray's utility for its own tests: nodes of one machine, each with its own processes. `ray start` once per node, with
# its own ports and folder, would replace it.
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from raygan.errors import RayganError

_RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Nodes:
    """Ray nodes of this machine, each with its own processes."""

    def __init__(self, checkout: Path, *cores: int, store: int | None = None, env: Mapping[str, str] | None = None):
        """Start the nodes.

        Args:
            checkout: the folder that submitted jobs run in.
            cores: number of cores of the head node, then of each further node.
            store: bytes of each node's object store.
            env: environment variables of each node's processes.
        """
        self._checkout, self._env = checkout, dict(env or {})
        self._store = {"object_store_memory": store} if store else {}
        head = {"num_cpus": cores[0], "include_dashboard": True, "dashboard_port": None}  # any free port
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "env_vars": self._env, **self._store})
        self._others: list[Any] = []
        self._added = 0
        for number in cores[1:]:
            self.add(number)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def ids(self) -> list[str]:
        """The nodes' ids, the head's first."""
        return [str(node.node_id) for node in (self._cluster.head_node, *self._others)]

    @property
    def dashboard(self) -> str:
        """The address that jobs are submitted to."""
        return f"http://{self._cluster.webui_url}"

    def add(self, cores: int, env: Mapping[str, str] | None = None) -> None:
        """Add a node with its own address, since a job takes nodes with its own address for its own machine.

        Args:
            cores: number of its cores.
            env: further environment variables of its processes.
        """
        self._added += 1
        address, variables = f"127.0.0.{1 + self._added}", {**self._env, **(env or {})}
        self._others.append(
            self._cluster.add_node(num_cpus=cores, node_ip_address=address, env_vars=variables, **self._store)
        )

    def kill_last(self) -> str:
        """SIGKILL every process of the newest node, and return the node's id."""
        node = self._others.pop()
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        # All at once, as when a machine dies. Ray's utility leaves the workers to find out for themselves.
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def places_of(self, kind: str) -> list[str]:
        """Node ids of the living actors of a class."""
        wanted = [("class_name", "=", kind), ("state", "=", "ALIVE")]
        return sorted(str(actor.node_id) for actor in list_actors(address=self.dashboard, filters=wanted))

    def warn_last(self, seconds: int) -> None:
        """Tell Ray that the newest node will be taken away after these seconds."""
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
        node = ["drain-node", "--address", self.address, "--node-id", self._others[-1].node_id]
        self._ray(*node, *why, "--deadline-remaining-seconds", str(seconds))

    def submission(self, name: str, command: list[str]) -> list[str]:
        """Ray's command that submits a command to the cluster and waits for its end."""
        where = ["--address", self.dashboard, "--working-dir", str(self._checkout)]
        return [*_RAY, "job", "submit", *where, "--submission-id", name, "--", *command]

    def stop_submitted(self, name: str) -> None:
        """Have Ray stop a submitted job."""
        self._ray("job", "stop", "--address", self.dashboard, name)

    def _ray(self, *arguments: str) -> None:
        done = subprocess.run([*_RAY, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RayganError(f"ray {arguments[0]} failed: {' / '.join(done.stderr.strip().splitlines()[-2:])}")

    def stop(self) -> None:
        self._cluster.shutdown()
