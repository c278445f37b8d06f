"""The Ray cluster: connecting to it, and asking whether it can give what a job needs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from raygan.addresses import is_remote
from raygan.errors import ConfigurationError, RayganError, Terminated, first_line, last_line
from raygan.runtime.settings import StorageSettings, WorkerOptions

#: Seconds in which every node must have looked whether it sees the job's folders.
_LOOK_S = 60

#: Seconds in which a cluster's head must take a connection.
_ANSWER_S = 10


def connect(settings: StorageSettings | None = None) -> None:
    """Connect to the cluster of RAY_ADDRESS, else one running on this machine, else start a local one.

    Does nothing when connected already. From here on SIGTERM raises `Terminated` in the main thread.

    settings: of the job, whose folders and files every node must see. Raises ConfigurationError that names the one
    that a node doesn't see, or if several machines would write to one SQLite file; RayganError if an address is given
    and doesn't answer.
    """
    # Its handler has a search that is stopped by Ctrl-C look like one that came to its end.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = _cluster_address()
    try:
        # Of the dashboard Ray Train hears whether a controller is dead; its workers' cores are given back only then.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=True)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _refusal(address or "of this machine", error) from None
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a stack and ends the process before anything is put away.
        signal.signal(signal.SIGTERM, _terminate)
    if settings is not None:
        _check_shared(settings)


def _cluster_address() -> str | None:
    """What to give `ray.init`, having seen that somebody listens there: by itself it would try for minutes.

    RAY_ADDRESS; else the cluster that was last started on this machine, if it is still there; else None.
    """
    given = os.environ.get("RAY_ADDRESS")
    left: str | None = find_bootstrap_address(None)
    if given and given not in ("local", "auto"):
        if not _listens(given):
            raise _no_answer(given, "nothing listens there")
        return given
    if not given and left and not _listens(left):
        print(f"the Ray cluster at {left} is gone; running on this machine alone", file=sys.stderr)
        return "local"
    return given


def _listens(address: str) -> bool:
    """Whether a connection to "host:port", with or without a scheme, is taken; true where that can't be told."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not (host and port.isdigit()):
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S):
            return True
    except OSError:
        return False


def _refusal(address: str, error: BaseException) -> RayganError:
    """What went wrong with the connection, and the way out."""
    said, cause = str(error).strip(), error.__cause__
    if "InvalidAuthToken" in f"{said}{cause}" or isinstance(error, ray.exceptions.AuthenticationError):
        return RayganError(
            f"the Ray cluster {address} refuses the token, or there is none: set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN to the cluster's, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    if "Version mismatch" in said:
        return RayganError(
            f"the Ray cluster {address} has another version ({' '.join(said.split())}): install the cluster's here"
        )
    return _no_answer(address, first_line(error))


def _no_answer(address: str, reason: str) -> RayganError:
    return RayganError(
        f"the Ray cluster {address} does not answer ({reason}): check RAY_ADDRESS, or unset it to run locally"
    )


def _terminate(*_: object) -> None:
    raise Terminated


def _check_shared(settings: StorageSettings) -> None:
    """Raise ConfigurationError if another node of the cluster doesn't see a folder or file of the settings."""
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    with ExitStack() as stack:
        wanted = _addresses(settings)
        for flag, folder in _written(settings):
            # A folder of the same name on another disk would not do.
            wanted.append((flag, folder, stack.enter_context(_marker(flag, folder))))
        look = ray.remote(_look)
        paths = [path for *_, path in wanted]
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in others]
        looks = [look.options(num_cpus=0, scheduling_strategy=place).remote(paths) for place in places]
        try:
            found = ray.get(looks, timeout=_LOOK_S)
        except ray.exceptions.GetTimeoutError:
            raise RayganError(f"the cluster's nodes do not answer within {_LOOK_S} s: see `ray status`") from None
        except ray.exceptions.RayError as error:
            raise RayganError(
                f"a node of the cluster can't run raygan ({last_line(error)}): install it there, or submit the job by "
                f"jobs/submit.py, which does"
            ) from None
    for node, (missing, _) in zip(others, found, strict=True):
        for number in missing:
            flag, address, _ = wanted[number]
            way_out = (
                "the address of an MLflow server" if flag == "--tracking-uri" else "a shared folder, s3:// or gs://"
            )
            raise ConfigurationError(
                f"{flag}: {address} of this node is not seen by node {node['NodeManagerHostname']} "
                f"({node['NodeManagerAddress']}): on a cluster of several nodes give {way_out}"
            )
    if _records_in_file(settings) and {machine for _, machine in found} != {_machine()}:
        raise ConfigurationError(
            "--tracking-uri: the cluster has several machines, and a SQLite file that they share gets damaged: "
            "give the address of an MLflow server or of a database"
        )


def _written(settings: StorageSettings) -> list[tuple[str, str]]:
    """Flag and path of the local folders that the job writes to."""
    named = [("--storage", settings.storage)]
    if not getattr(settings, "dry_run", False):
        named.append(("--output", getattr(settings, "output", None) or ""))
    return [(flag, folder) for flag, folder in named if folder and not is_remote(folder)]


def _records_in_file(settings: StorageSettings) -> bool:
    """Whether the job writes MLflow's records to a SQLite file."""
    in_file = settings.tracking_uri.startswith("sqlite:") if settings.tracking_uri else not is_remote(settings.storage)
    return in_file and not getattr(settings, "dry_run", False)


def _addresses(settings: StorageSettings) -> list[tuple[str, str, str]]:
    """Flag, address and absolute path of each local file and folder that the settings name and that is there."""
    named: list[tuple[str, str]] = []
    for name in ("data", "input"):
        value = getattr(settings, name, None) or []
        named += [(f"--{name}", address) for address in ([value] if isinstance(value, str) else value)]
    uri = settings.tracking_uri or ""  # by default within the storage
    if uri.startswith("sqlite:///"):
        named.append(("--tracking-uri", uri.removeprefix("sqlite:///")))
    local = [(flag, address, os.path.abspath(address)) for flag, address in named if not is_remote(address)]
    return [each for each in local if os.path.exists(each[-1])]


@contextmanager
def _marker(flag: str, folder: str) -> Iterator[str]:
    """A file for a while, in a folder that is made if need be."""
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=".visible-", dir=folder)
    except OSError as error:
        raise RayganError(f"{flag}: can't write into {folder}: {error.strerror}") from None
    os.close(descriptor)
    try:
        yield os.path.abspath(path)
    finally:
        os.unlink(path)


def _look(paths: Sequence[str]) -> tuple[list[int], str]:
    """Which of the paths this node doesn't see, and which machine it is on."""
    return [number for number, path in enumerate(paths) if not os.path.exists(path)], _machine()


def _machine() -> str:
    """The machine, the same in all its containers: whose processes can lock each other's files."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # not on Linux
        return socket.gethostname()


@contextmanager
def ray_data(settings: StorageSettings, **options: Any) -> Iterator[None]:
    """Ray connected, and Ray Data silent: progress is shown by the jobs. options: of its `DataContext`."""
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
    """Let Ray Train's controller look at its workers four times a second.

    A worker's second report waits until the first was fetched; at the default of 2 s that would be half of
    the time of a run with short epochs.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def queue() -> Queue:
    """A queue for what workers tell this process. It lives on this node: losing another must not end the job."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


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


def failure(error: ray.exceptions.RayError) -> RayganError:
    """Why a task failed, in one line: what it raised itself, or what Ray says."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, RayganError) else RayganError(f"a task failed: {last_line(error)}")


def fetch(tasks: Any) -> Any:
    """What a task or several give, as `ray.get`. Raises RayganError if one failed, or what it gave is lost."""
    try:
        return ray.get(tasks)
    except ray.exceptions.RayError as error:
        raise failure(error) from error


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
        f"({everything} in all, room for {fitting}): ask for {max(fitting, 1)} or fewer{smaller}, for a range such as "
        f"1:{workers} that follows the cluster, or add nodes"
    )


def _fitting(node: dict[str, Any], resources: dict[str, float]) -> int:
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    return int(min((node.get(name, 0) + 1e-6) // amount for name, amount in needed.items()))
