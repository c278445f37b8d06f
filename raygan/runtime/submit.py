"""Submit: run a job of this checkout on a cluster and follow it from here.

Does what `ray job submit --working-dir .` does. In addition it installs the project there through a runtime
environment, ends with the job's own exit status, and answers a wrong address, token, version or size in one line.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raygan.addresses import by_proxy, password
from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.runtime.settings import SubmitSettings

#: Loggers that report every file that is sent or left out.
_TALKATIVE = ("ray.dashboard.modules.job.sdk", "ray._private.runtime_env")

#: Ray replaces this by the path of the unpacked checkout on each node.
_CHECKOUT = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"

#: Seconds after which a job that has not started is worth a word.
_PENDING_S = 10.0

#: What the client raises if the cluster doesn't answer.
_LOST = (RuntimeError, OSError, aiohttp.ClientError, ray.exceptions.RayError)

_WANTED_ADDRESS = "the address of the cluster's dashboard, such as http://HEAD:8265"


def submit(settings: SubmitSettings, command: Sequence[str]) -> int:
    """Submit a job, show its output and return its exit status.

    Args:
        settings: the cluster, the checkout and how to follow the job.
        command: a file of jobs/ and its flags, such as ``["train.py", "--data", "shards"]``.

    Raises:
        ConfigurationError: there is no such job.
        RayganError: the cluster can't be reached or refuses the job.
    """
    entrypoint = _entrypoint(Path(settings.working_dir), command)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    client = _connect(settings.address)
    environment = {"working_dir": settings.working_dir, **({"pip": [_CHECKOUT]} if settings.install else {})}
    try:
        name = client.submit_job(entrypoint=entrypoint, runtime_env=environment, submission_id=settings.name)
    except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _refusal(settings, error) from None
    print(f"job {name}: `ray job stop {name} --address {settings.address}` stops it", flush=True)
    if not settings.wait:
        return 0
    try:
        asyncio.run(_follow(client, name))
        info = client.get_job_info(name)
    except KeyboardInterrupt:
        print(f"\njob {name} keeps running", file=sys.stderr)
        return 130
    except _LOST as error:
        raise RayganError(f"lost contact with job {name}, which may still run: {first_line(error)}") from None
    if not info.status.is_terminal():  # a proxy ended the connection
        raise RayganError(
            f"lost contact with job {name}, which may still run: its log ended while it was {info.status.lower()}"
        )
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {name}: {info.status.lower()}{_reason(info)}", file=sys.stderr)
    return info.driver_exit_code or 1


def _entrypoint(folder: Path, command: Sequence[str]) -> str:
    jobs = sorted(path.name for path in (folder / "jobs").glob("*.py") if path.stem != "submit")
    if not jobs:
        raise ConfigurationError(f"--working-dir: {folder} is not a checkout of raygan: it has no jobs")
    if not command or Path(command[0]).name not in jobs:
        given = f"{command[0]!r} is not a job" if command else "name a job after --"
        raise ConfigurationError(f"{given}; choose one of {', '.join(jobs)}")
    for flag, word in zip(["", *command], command, strict=False):
        if password(word.partition("=")[2] if word.startswith("--") else word):
            name = word.partition("=")[0] if word.startswith("--") else flag
            raise ConfigurationError(
                f"{name}: must not contain a password, which the cluster's list of jobs would show: set "
                f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, on every node"
            )
    return shlex.join(["python", f"jobs/{Path(command[0]).name}", *command[1:]])


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"--address: {address!r} is not {_WANTED_ADDRESS}")
    try:
        client = JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError:
        raise RayganError(
            f"--address: {address} refuses the token, or no token is set: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            f"to the cluster's token unless ~/.ray/auth_token holds it"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        advice = by_proxy(address) or f"give {_WANTED_ADDRESS}"
        raise RayganError(f"--address: no cluster answers at {address} ({reason}): {advice}") from None
    # Private: the public `get_version` gives the version of the jobs API, not Ray's.
    version = client._server_ray_version
    if version != ray.__version__:
        raise RayganError(
            f"--address: {address} runs Ray {version} but here is {ray.__version__}: install the cluster's version"
        )
    return client


def _refusal(settings: SubmitSettings, error: Exception) -> RayganError:
    said = str(error)
    if "exceeds the maximum size" in said:
        return RayganError(
            f"--working-dir: {settings.working_dir} is too large to send: list data and results in .rayignore, or "
            f"keep them elsewhere"
        )
    if "already exists" in said:
        return RayganError(f"--name: the cluster already has a job {settings.name}: give another name")
    return RayganError(f"the cluster refuses the job: {first_line(error)}")


def _reason(info: JobDetails) -> str:
    """Why a job ended without an exit status: it couldn't start, or was stopped. Otherwise its log has the reason."""
    if info.driver_exit_code is not None or not info.message:
        return ""
    lines = [line.strip() for line in info.message.splitlines() if line.strip()]
    # A failed pip has its reason anywhere in the output; other traces end with it.
    return f": {next((line for line in lines if line.startswith('ERROR:')), lines[-1])}" if lines else ""


async def _follow(client: JobSubmissionClient, name: str) -> None:
    waiting = asyncio.create_task(_say_if_pending(client, name))
    try:
        async for lines in client.tail_job_logs(name):
            waiting.cancel()
            print(lines, end="", flush=True)
    finally:
        waiting.cancel()


async def _say_if_pending(client: JobSubmissionClient, name: str) -> None:
    """Say why nothing is to be seen, if the job has not started after a while."""
    await asyncio.sleep(_PENDING_S)
    with suppress(*_LOST):
        info = await asyncio.to_thread(client.get_job_info, name)
        if info.status == JobStatus.PENDING:
            print(
                f"job {name}: {info.message or 'it has not started yet.'} Installing the checkout on a node takes "
                f"minutes the first time; Ctrl-C leaves the job running",
                file=sys.stderr,
            )
