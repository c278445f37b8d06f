"""Whether all nodes of a cluster see a job's folders and files.

A job's paths must mean the same on every node. So a task on each other node looks for the files that the settings
name, and for a marker file in each folder that the job writes to.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygan.addresses import is_remote, sqlite_file
from raygan.errors import ConfigurationError, RayganError, last_line, reason
from raygan.machine import boot_id
from raygan.runtime.settings import StorageSettings

#: Seconds within which every node must report whether it sees the job's folders.
_LOOK_S = 60


def check_shared(settings: StorageSettings) -> None:
    """Check that every node of the connected cluster sees what the job reads and writes.

    Raises:
        ConfigurationError: another node doesn't see a folder or file, or several machines would write to one SQLite
            file.
        RayganError: a folder can't be written, or a node doesn't answer or can't run raygan.
    """
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    with ExitStack() as stack:
        wanted = _addresses(settings)
        for flag, folder in _written(settings):
            # A folder of the same name on another disk is not enough.
            wanted.append((flag, folder, stack.enter_context(_marker(flag, folder))))
        found = _look_on([node["NodeID"] for node in others], [path for *_, path in wanted])
    for node, (missing, _) in zip(others, found, strict=True):
        for flag, address, _ in (wanted[number] for number in missing):
            instead = (
                "the address of an MLflow server" if flag == "--tracking-uri" else "a shared folder, s3:// or gs://"
            )
            raise ConfigurationError(
                f"{flag}: {address} on this node is not visible to node {node['NodeManagerHostname']} "
                f"({node['NodeManagerAddress']}): on a cluster of several nodes, give {instead}"
            )
    if _records_in_file(settings) and {place for _, place in found} != {boot_id()}:
        raise ConfigurationError(
            "--tracking-uri: the cluster has several machines, and sharing a SQLite file would damage it: "
            "give the address of an MLflow server or a database"
        )


def _look_on(nodes: Sequence[str], paths: Sequence[str]) -> list[tuple[list[int], str]]:
    """What `_look` finds on each node."""
    look = ray.remote(_look)
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    try:
        tasks = [look.options(num_cpus=0, scheduling_strategy=place).remote(paths) for place in places]
        found: list[tuple[list[int], str]] = ray.get(tasks, timeout=_LOOK_S)
    except ray.exceptions.GetTimeoutError:
        raise RayganError(f"the cluster's nodes did not answer within {_LOOK_S} s: see `ray status`") from None
    except ray.exceptions.RayError as error:
        raise RayganError(
            f"a node of the cluster can't run raygan ({last_line(error)}): install it there, or submit the job "
            f"with jobs/submit.py, which installs it"
        ) from None
    return found


def _written(settings: StorageSettings) -> list[tuple[str, str]]:
    """Flag and path of each local folder that the job writes to."""
    named = [("--storage", settings.storage)]
    if not getattr(settings, "dry_run", False):
        named.append(("--output", getattr(settings, "output", None) or ""))
    return [(flag, folder) for flag, folder in named if folder and not is_remote(folder)]


def _records_in_file(settings: StorageSettings) -> bool:
    """Whether the job's MLflow records go to a SQLite file."""
    in_file = settings.tracking_uri.startswith("sqlite:") if settings.tracking_uri else not is_remote(settings.storage)
    return in_file and not getattr(settings, "dry_run", False)


def _addresses(settings: StorageSettings) -> list[tuple[str, str, str]]:
    """Flag, address and absolute path of each existing local file and folder that the settings name."""
    named: list[tuple[str, str]] = []
    for name in ("data", "input"):
        value = getattr(settings, name, None) or []
        named += [(f"--{name}", address) for address in ([value] if isinstance(value, str) else value)]
    records = sqlite_file(settings.tracking_uri or "")  # by default inside the storage
    if records:
        named.append(("--tracking-uri", records))
    local = [(flag, address, os.path.abspath(address)) for flag, address in named if not is_remote(address)]
    return [each for each in local if os.path.exists(each[-1])]


@contextmanager
def _marker(flag: str, folder: str) -> Iterator[str]:
    """A temporary file in a folder, which is created if missing."""
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=".visible-", dir=folder)
    except OSError as error:
        raise RayganError(f"{flag}: can't write into {folder}: {reason(error)}") from None
    os.close(descriptor)
    try:
        yield os.path.abspath(path)
    finally:
        os.unlink(path)


def _look(paths: Sequence[str]) -> tuple[list[int], str]:
    """Indices of the paths that this node doesn't see, and its machine, whose processes can lock each other's files."""
    return [number for number, path in enumerate(paths) if not os.path.exists(path)], boot_id()
