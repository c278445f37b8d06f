"""What tests of several rooms need: waiting, jobs and ranks as processes, packages that extend raygan."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent

#: Cores of the tests' cluster: more than a small machine has, so that placement never decides a test, and few, since
#: Ray starts a process for each, which imports torch.
CORES = 3


@contextmanager
def taken_cores(count: int) -> Iterator[None]:
    """Hold cores of the tests' cluster in the block, as another job does."""
    import ray

    group = ray.util.placement_group([{"CPU": count}])
    try:
        assert group.wait(60)
        yield
    finally:
        ray.util.remove_placement_group(group)


def wait_until(
    condition: Callable[[], Any], what: str, timeout_s: float = 240.0, *, alive: subprocess.Popen[Any] | None = None
) -> Any:
    """Poll until `condition()` is true, and return what it gave. Fails, saying `what`, after `timeout_s` seconds.

    alive: a process that must not end meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if alive is not None and alive.poll() is not None:
            pytest.fail(f"the process ended with status {alive.returncode} before {what}")
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return found


def wait_for_cores(count: float = CORES, timeout_s: float = 240.0) -> None:
    """Wait until the cluster has `count` free cores, by default all. Fails naming what holds the others."""
    import ray
    from ray.util.state import list_actors

    deadline = time.monotonic() + timeout_s
    while ray.available_resources().get("CPU", 0) != count:
        if time.monotonic() > deadline:
            address = ray.get_runtime_context().gcs_address
            groups = [
                f"placement group {name}: {group['state']}, {list(group['bundles'].values())}"
                for name, group in ray.util.placement_group_table().items()
                if group["state"] != "REMOVED"
            ]
            actors = [
                f"actor {actor.class_name} (pid {actor.pid}): {actor.state}"
                for actor in list_actors(address, filters=[("state", "!=", "DEAD")])
            ]
            free = ray.available_resources().get("CPU", 0)
            pytest.fail("\n".join([f"{free:g} of {count:g} cores are free after {timeout_s:g} s", *groups, *actors]))
        time.sleep(0.1)


def start_job(
    name: str,
    arguments: Sequence[str] = (),
    *,
    settings: Any = None,
    address: str | None = None,
    environment: dict[str, str] | None = None,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    """Start ``jobs/<name>.py`` as a user would.

    settings: a settings object, passed by a `--config` file in its storage. address: of the Ray cluster.
    """
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
    if settings is not None:
        config = Path(settings.storage, f"{name}-{time.monotonic_ns()}.json")
        config.write_text(json.dumps(settings.plain()))  # JSON is YAML
        command += ["--config", str(config)]
    variables = {**os.environ, **(environment or {}), **({"RAY_ADDRESS": address} if address else {})}
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=variables)


def outputs(job: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a job's end, and return what it wrote to stdout and stderr. The test's own time limit kills the job."""
    with job:
        try:
            return job.communicate()
        except BaseException:
            job.kill()
            raise


def finish_job(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, and return its exit status and what it wrote. options: as for `start_job`."""
    job = start_job(name, arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    output, errors = outputs(job)
    return subprocess.CompletedProcess(job.args, job.returncode, output, errors)


def run_ranks(work: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in a process for each rank. Raises if one of them fails.

    They are forked from one server, which has imported torch, with what its optimizers load at their first use.
    """
    from torch.multiprocessing.spawn import start_processes

    multiprocessing.set_forkserver_preload(["torch._dynamo", work.__module__])
    start_processes(work, arguments, ranks, start_method="forkserver")


#: Starts the emulator of Google's storage. By itself it answers one request at a time, and where a client reads
#: two objects in turns, neither goes on.
_EMULATOR = """
import http.server, runpy
http.server.HTTPServer = http.server.ThreadingHTTPServer
runpy.run_module("gcp_storage_emulator", run_name="__main__")
"""


@contextmanager
def google_storage() -> Iterator[str]:
    """The address of an empty bucket of Google's storage, which an emulator plays for the length of a `with` block.

    It has a process of its own: pyarrow holds the GIL while it reads.
    """
    from raygan.benchmarks.servers import free_port  # not needed, and slow to import, where ranks begin

    port = free_port()
    command = [sys.executable, "-c", _EMULATOR, "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--in-memory", "--default-bucket", "bucket"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "the emulator listens", alive=server)
        yield f"gs://anonymous@bucket?scheme=http&endpoint_override=127.0.0.1:{port}"
        server.kill()


def make_package(folder: Path, name: str, code: str, entry_points: str) -> Path:
    """An installed package as pip would leave it, in a folder for PYTHONPATH: one module and its entry points.

    entry_points: the text of entry_points.txt, such as ``[raygan.objectives]\\nhinge = toy:Hinge``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points + "\n")
    return folder
