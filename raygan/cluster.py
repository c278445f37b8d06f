"""The Ray cluster: connecting to it, and asking whether it can give what a job needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from tqdm import tqdm

from raygan.config import WorkerOptions
from raygan.errors import ConfigurationError, RayganError


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, else one running on this machine, else start a local one.

    Does nothing when connected already. Raises RayganError if an address is given and doesn't answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "of this machine")
        reason = str(error).strip().splitlines()[0]
        raise RayganError(
            f"the Ray cluster {address} does not answer ({reason}): check RAY_ADDRESS, or unset it to run locally"
        ) from None


@contextmanager
def ray_data(**options: Any) -> Iterator[None]:
    """Ray connected, and Ray Data silent: progress is shown by the jobs. options: of its `DataContext`."""
    import ray.data

    connect()
    context = ray.data.DataContext.get_current()
    ours = {"enable_progress_bars": False, "print_on_execution_start": False, **options}
    before = {name: getattr(context, name) for name in ours}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        logger.setLevel(logging.ERROR)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def poll_training_often() -> None:
    """Let Ray Train's controller look at its workers four times a second.

    A worker's second report waits until the first was fetched; at the default of 2 s that would be half of
    the time of a run with short epochs.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def nodes() -> list[dict[str, Any]]:
    """Resources of each living node, such as ``{"CPU": 2.0, "GPU": 1.0}``."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(resource: str) -> float:
    """How much of a resource all living nodes have together."""
    return float(sum(node.get(resource, 0) for node in nodes()))


def use_gpus(wanted: bool | None, workers: int) -> bool:
    """Whether each worker gets a GPU: as wanted, or if the cluster has one for each."""
    if wanted is None:
        return total("GPU") >= workers
    return wanted


def worker_resources(options: WorkerOptions) -> dict[str, float]:
    """What each training worker reserves: its cores, and a GPU as wanted. A cluster must be connected."""
    resources: dict[str, float] = {"CPU": options.cpus_per_worker}
    if use_gpus(options.gpu, options.fewest_workers):
        resources["GPU"] = 1
    return resources


def wait_for(tasks: Sequence[ray.ObjectRef], doing: str, *, unit: str = "task", leave: bool = False) -> None:
    """Show how many of the tasks are done, with the time left, until all are.

    leave: the bar stays on the screen.
    """
    waiting = list(tasks)
    with tqdm(total=len(waiting), desc=doing, unit=unit, leave=leave) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            bar.update(len(done))


def room(resources: dict[str, float]) -> int:
    """How many workers of these resources fit the cluster's nodes, if nothing else ran."""
    return sum(_fitting(node, resources) for node in nodes())


def require(workers: int, resources: dict[str, float]) -> None:
    """Raise ConfigurationError unless `workers` workers of these resources fit the cluster's nodes.

    Without this check Ray would wait for ever for nodes that never come.
    """
    fitting = room(resources)
    if fitting >= workers:
        return
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    everything = ", ".join(f"{total(name):g} {name}" for name in resources)
    smaller = ", or for less each with --cpus-per-worker" if resources.get("CPU", 0) > 0.5 else ""
    raise ConfigurationError(
        f"--num-workers: {workers} workers of {each} each do not fit this cluster "
        f"({everything} in all, room for {fitting}): ask for {max(fitting, 1)} or fewer{smaller}, or add nodes"
    )


def _fitting(node: dict[str, Any], resources: dict[str, float]) -> int:
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    return int(min((node.get(name, 0) + 1e-6) // amount for name, amount in needed.items()))
