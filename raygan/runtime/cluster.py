"""The Ray cluster: connecting to it, and waiting for what runs there."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from raygan.errors import RayganError, Terminated, first_line, last_line
from raygan.machine import cores
from raygan.runtime import local, private, waiting
from raygan.runtime.settings import StorageSettings
from raygan.runtime.shared import check_shared

#: Seconds within which a cluster's head must accept a connection.
_ANSWER_S = 10


def connect(settings: StorageSettings | None = None, *, log_to_driver: bool = False) -> None:
    """Connect to the cluster at RAY_ADDRESS, else to one running on this machine, else start a local one.

    Does nothing if already connected. From here on SIGTERM raises `Terminated` in the main thread.

    Args:
        settings: of the job; every node must see its folders and files. None checks nothing.
        log_to_driver: print what processes of the cluster print.

    Raises:
        ConfigurationError: a node doesn't see a folder or file, or several machines would write to one SQLite file.
        RayganError: the given cluster doesn't answer.
    """
    # With Tune's own handler, a search that Ctrl-C stops looks like one that finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = _cluster_address()
    options: dict[str, Any] = {}
    if address == "local" or (address is None and private.last_cluster() is None):
        local.check_machine()
        options["num_cpus"] = cores()  # Ray itself sees neither CPU affinity nor quotas outside of containers
        # Otherwise each training has a process that asks whether its nodes will go.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        # Ray Train asks the dashboard whether a controller is alive, and frees the cores of a dead one's workers.
        with _kept_from_sigterm():
            ray.init(
                address=address,
                log_to_driver=log_to_driver,
                logging_level=logging.ERROR,
                include_dashboard=True,
                **options,
            )
    except Exception as error:  # Ray raises a bare one if a process of its own takes too long
        if options:
            raise RayganError(f"Ray can't start on this machine: {_why_not_started(error)}") from None
        raise _refusal(address or "of this machine", error) from None
    if options:
        local.say_where_store_is(min(node.get("object_store_memory", 0.0) for node in nodes()))
    else:
        waiting.watch_tasks()
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a stack trace and ends the process before anything is cleaned up.
        signal.signal(signal.SIGTERM, _terminate)
        # Blocked if this job was submitted to a cluster that another job started.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if settings is not None:
        check_shared(settings)


@contextmanager
def _kept_from_sigterm() -> Iterator[None]:
    """Processes started in the block get no SIGTERM, as Ray's own get no SIGINT: the job is the one to stop them.

    `timeout`, systemd and batch systems send SIGTERM to all of a job's processes at once. Without its cluster, a job
    could neither stop its workers nor record how it ended. (The dashboard unblocks its signals, and may go.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cluster_address() -> str | None:
    """The address for `ray.init`: RAY_ADDRESS, else the cluster last started on this machine, else None.

    Checks that somebody listens there, since `ray.init` would try for minutes.
    """
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given.startswith(("http://", "https://")):
        raise RayganError(
            f"RAY_ADDRESS: {given} is the address of a dashboard: give that of the cluster, such as HOST:6379, or "
            f"submit the job to the dashboard with jobs/submit.py"
        )
    left = private.last_cluster()
    if given not in ("", "local"):
        meant = left if given == "auto" else given
        if meant and not _listens(meant):
            raise _no_answer(meant, "nothing listens there")
        return meant or given
    if not given and left and not _listens(left):
        print(f"the Ray cluster at {left} is gone; running on this machine alone", file=sys.stderr)
        return "local"
    return given or None


def _listens(address: str) -> bool:
    """Whether "host:port", with or without a scheme, accepts a connection; true if it isn't such an address."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not (host and port.isdigit()):
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S):
            return True
    except OSError:
        return False


def _refusal(address: str, error: BaseException) -> RayganError:
    """Why the connection failed, and what to do about it."""
    said, cause = str(error).strip(), error.__cause__
    if "InvalidAuthToken" in f"{said}{cause}" or isinstance(error, ray.exceptions.AuthenticationError):
        return RayganError(
            f"the Ray cluster {address} refuses the token, or no token is set: set RAY_AUTH_MODE=token, and "
            f"RAY_AUTH_TOKEN to the cluster's token or RAY_AUTH_TOKEN_PATH to a file with it"
        )
    if "Version mismatch" in said:
        return RayganError(
            f"the Ray cluster {address} runs another version ({' '.join(said.split())}): "
            f"install the cluster's version here"
        )
    return _no_answer(address, first_line(error))


def _why_not_started(error: BaseException) -> str:
    """Why a cluster on this machine did not start."""
    log = re.search(r"\S+/dashboard\.(log|err)\b", str(error))  # Ray quotes pages of it
    if log is None:
        return first_line(error)
    return f"its dashboard did not: run the command again if the machine was busy; otherwise see {log[0]}"


def _no_answer(address: str, reason: str) -> RayganError:
    return RayganError(
        f"the Ray cluster {address} does not answer ({reason}): check RAY_ADDRESS, or unset it to run locally"
    )


def _terminate(*_: object) -> None:
    raise Terminated


@contextmanager
def ray_data(settings: StorageSettings, **options: Any) -> Iterator[None]:
    """Connect to Ray and keep Ray Data silent, since jobs show progress themselves.

    Args:
        settings: of the job.
        options: fields of Ray Data's `DataContext`, restored at the end.
    """
    import ray.data

    connect(settings)
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
    """Let Ray Train's controller poll its workers four times a second.

    A worker's second report waits until the first has been fetched. At the default of 2 s, that would take half the
    time of a run with short epochs.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def queue() -> Queue:
    """A queue for workers' events. It lives on this node, since losing another node must not end the job."""
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here()})


def here() -> NodeAffinitySchedulingStrategy:
    """Ray's strategy for what must run on this node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def nodes() -> list[dict[str, Any]]:
    """The resources of each live node, such as ``{"CPU": 2.0, "GPU": 1.0}``."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_scratch(checkpoint: int) -> None:
    """`local.check_scratch` for checkpoints of this many bytes, unless workers may be on machines with other disks."""
    if len(nodes()) == 1:
        local.check_scratch(checkpoint)


def total(resource: str) -> float:
    """How much of a resource all live nodes have together."""
    return float(sum(node.get(resource, 0) for node in nodes()))


def wait_for(tasks: Sequence[ray.ObjectRef], doing: str, *, unit: str = "task", leave: bool = False) -> None:
    """Show a progress bar until all tasks are done.

    Args:
        tasks: Ray's references to them.
        doing: text beside the bar.
        unit: what the bar counts.
        leave: keep the bar on the screen at the end.
    """
    left = list(tasks)
    with tqdm(total=len(left), desc=doing, unit=unit, leave=leave) as bar:
        while left:
            done, left = ray.wait(left, num_returns=1)
            bar.update(len(done))


def run_all(starts: Sequence[Callable[[], ray.ObjectRef]], doing: str, *, unit: str = "task") -> list[ray.ObjectRef]:
    """Start tasks that reserve no cores, no more at a time than the cluster has cores, with a progress bar.

    Args:
        starts: each starts a task.
        doing: text beside the bar.
        unit: what the bar counts.

    Returns:
        Ray's references to the tasks, all of which have ended.
    """
    at_once = max(1, int(total("CPU")))
    tasks: list[ray.ObjectRef] = []
    running: list[ray.ObjectRef] = []
    with tqdm(total=len(starts), desc=doing, unit=unit, leave=False) as bar:
        for number in range(len(starts) + at_once):
            if number < len(starts):
                tasks.append(starts[number]())
                running.append(tasks[-1])
            if len(running) >= at_once or (running and number >= len(starts)):
                ended, running = ray.wait(running, num_returns=1, fetch_local=False)
                bar.update(len(ended))
    return tasks


def failure(error: ray.exceptions.RayError) -> RayganError:
    """Why a task failed, in one line: the task's own RayganError, or what Ray says."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, RayganError) else RayganError(f"a task failed: {last_line(error)}")


def fetch(tasks: Any) -> Any:
    """The result of a task, or of a list of tasks. Raises RayganError if a task failed or its result was lost."""
    try:
        return ray.get(tasks)
    except ray.exceptions.RayError as error:
        raise failure(error) from error
