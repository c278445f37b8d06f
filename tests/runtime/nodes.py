"""Further nodes for the tests' cluster."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

from raygan.runtime import cluster
from tests.helpers import wait_until


def gcs_address() -> str:
    return ray.get_runtime_context().gcs_address


@contextmanager
def another_node(cpus: int, within: Sequence[str] = ()) -> Iterator[None]:
    """Add a node to the tests' cluster for a `with` block.

    Args:
        cpus: cores of the node.
        within: a command that runs the node's command, such as ``unshare``.
    """
    before = len(cluster.nodes())
    # `ray start` overwrites the address that later jobs of this machine would connect to.
    known = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    kept = known.read_bytes() if known.exists() else None
    start = ["ray", "start", "--block", f"--num-cpus={cpus}", f"--address={gcs_address()}"]
    node = subprocess.Popen([*within, *start], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(cluster.nodes()) > before, "the node joins the cluster", alive=node)
    try:
        yield
    finally:
        node.terminate()
        node.wait()
        if kept is not None:
            known.write_bytes(kept)
        else:
            known.unlink(missing_ok=True)
        wait_until(lambda: len(cluster.nodes()) == before, "the node leaves the cluster")
