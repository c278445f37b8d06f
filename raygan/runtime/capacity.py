"""The resources that workers reserve, and whether the cluster has them or could have them.

For an autoscaling cluster, the nodes that it may still start count, too.
"""

from __future__ import annotations

import functools
import math
import socket
import sys

import ray
import torch

from raygan.errors import ConfigurationError
from raygan.machine import cores
from raygan.runtime import cluster, private
from raygan.runtime.settings import WorkerOptions

Resources = dict[str, float]

#: A few tasks that only pass images through networks keep a GPU busy.
_SHARE = 0.25


def place(options: WorkerOptions, *, quiet: bool = False) -> Resources:
    """What each training worker reserves: its cores, and a GPU if wanted. Needs a connected cluster.

    Args:
        options: of the training.
        quiet: don't print where the workers run.

    Raises:
        ConfigurationError: the workers don't fit the cluster, or it has GPUs, but too few.
    """
    resources: Resources = {"CPU": options.cpus_per_worker}
    if use_gpus(options.gpu, options.fewest_workers):
        resources["GPU"] = 1
    _require(options.fewest_workers, resources)
    if not quiet:
        print(_said(options, resources), flush=True)
    return resources


def use_gpus(wanted: bool | None, workers: int) -> bool:
    """Whether each worker gets a GPU: as wanted, or by default if the cluster has GPUs.

    Raises:
        ConfigurationError: it has GPUs, and can't ever have one for each worker.
    """
    if wanted is not None:
        return wanted
    gpus = _room({"GPU": 1}, could=True)
    if 0 < gpus < workers:
        raise ConfigurationError(
            f"{workers} workers need a GPU each, and this cluster has {gpus:g}: ask for {gpus:g} or fewer, ask for a "
            f"range such as 1:{workers}, which adapts to the cluster, or compute on cores with --no-gpu"
        )
    return gpus > 0


def gpu_share() -> float:
    """GPUs for a task that passes images through networks to reserve: a share of one where there are any, else none."""
    return _SHARE if cluster.total("GPU") else 0.0


def own_device() -> torch.device:
    """Where this process computes: on the GPU that its task or actor has reserved, if any, else on the CPU.

    Ray doesn't hide GPUs from those that have reserved none.
    """
    if not (ray.is_initialized() and ray.get_gpu_ids()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        _say_unusable()
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # images and verdicts as on cores, up to rounding
    return torch.device("cuda")


@functools.cache
def _say_unusable() -> None:
    print(
        f"warning: a GPU is reserved on {socket.gethostname()}, but this torch ({torch.__version__}) finds none, so it "
        f"stays idle: install a torch with CUDA there, or start Ray with --num-gpus 0",
        file=sys.stderr,
        flush=True,
    )


def use_own_cores() -> None:
    """Give torch a thread for each core that this task or actor has reserved, up to those of the machine."""
    use_cores(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))


def use_cores(count: float) -> None:
    """Give torch this many threads: at least one, at most the machine's cores."""
    torch.set_num_threads(max(1, min(int(count), cores())))


def free_cores() -> float:
    """Cores of the cluster that nothing has reserved now."""
    return float(ray.available_resources().get("CPU", 0.0))


def room(resources: Resources) -> int:
    """How many workers with these resources fit the cluster's current nodes if nothing else runs."""
    return int(_room(resources, could=False))


def _require(workers: int, resources: Resources) -> None:
    """Raise ConfigurationError unless this many workers fit; without this check Ray would wait forever."""
    fitting, most = room(resources), _room(resources, could=True)
    if fitting >= workers:
        return
    each = _listed(resources)
    if most >= workers:
        print(f"waiting for nodes: there is room for {fitting} of {workers} workers with {each} each", flush=True)
        return
    everything = ", ".join(f"{cluster.total(name):g} {name}" for name in resources)
    smaller = ", give each less with --cpus-per-worker" if resources.get("CPU", 0) > 0.5 else ""
    fewer = (
        f"ask for {most:g} or fewer{smaller}, ask for a range such as 1:{workers}, which adapts to the cluster, or add "
        f"nodes"
    )
    raise ConfigurationError(
        f"--num-workers: {workers} workers with {each} each do not fit this cluster "
        f"({everything} in total, room for {most:g}): {fewer if most else _not_even_one(resources)}"
    )


def _not_even_one(resources: Resources) -> str:
    """What to change where no node can hold even one worker."""
    if "GPU" in resources and not _room({"GPU": resources["GPU"]}, could=True):
        return "there is no GPU: leave --gpu out, or compute on cores with --no-gpu"
    cores = max((node.get("CPU", 0) for node in cluster.nodes()), default=0)
    return f"a worker's cores are on one node, and the largest has {cores:g}: give --cpus-per-worker {cores:g} or less"


def _said(options: WorkerOptions, resources: Resources) -> str:
    """Where the workers run, in words."""
    fewest, most = options.fewest_workers, options.most_workers
    number = f"{fewest} worker{'s' * (fewest > 1)}" if fewest == most else f"{fewest} to {most} workers"
    why = "" if "GPU" in resources else ", without a GPU" if options.gpu is False else "; this cluster has no GPU"
    return f"training with {number} of {_listed(resources)}{why}"


def _listed(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _room(resources: Resources, *, could: bool) -> float:
    """How many workers fit the current nodes, or also those that could be started. It may be infinite."""
    now = sum(_fitting(node, resources) for node in cluster.nodes())
    config = private.largest_cluster() if could else None
    if config is None:
        return now
    fitting = [
        (group.max_count if group.max_count >= 0 else math.inf) * each
        for group in config.node_group_configs
        if (each := _fitting(dict(group.resources), resources))
    ]
    return max(now, sum(fitting))


def _fitting(node: Resources, resources: Resources) -> int:
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    return int(min((node.get(name, 0) + 1e-6) // amount for name, amount in needed.items()))
