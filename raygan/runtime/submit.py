"""Submit: a job of this checkout, run by a cluster and followed from here.

It is `ray job submit --working-dir .`, with the project installed there by a runtime environment, the job's own exit
status at the end, and one line for whatever is wrong with address, token, version or size.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.runtime.settings import SubmitSettings

#: Loggers that tell of every file that is sent or not.
_TALKATIVE = ("ray.dashboard.modules.job.sdk", "ray._private.runtime_env")

#: Ray puts the place of the unpacked checkout in, on each node.
_CHECKOUT = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"

_UNSAID = "the address of the cluster's dashboard, such as http://HEAD:8265"


def submit(settings: SubmitSettings, command: Sequence[str]) -> int:
    """Submit a job, show what it says, and return its exit status. command: ``train.py --data …``, a file of jobs/.

    Raises ConfigurationError if there is no such job, RayganError if the cluster can't be reached or refuses it.
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
        print(f"\njob {name} goes on", file=sys.stderr)
        return 130
    except (RuntimeError, OSError, aiohttp.ClientError, ray.exceptions.RayError) as error:
        raise RayganError(f"lost sight of job {name}, which may go on: {first_line(error)}") from None
    if not info.status.is_terminal():  # a proxy ended the connection
        raise RayganError(
            f"lost sight of job {name}, which may go on: its log ended while it was {info.status.lower()}"
        )
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {name}: {info.status.lower()}{_reason(info)}", file=sys.stderr)
    return info.driver_exit_code or 1


def _entrypoint(folder: Path, command: Sequence[str]) -> str:
    jobs = sorted(path.name for path in (folder / "jobs").glob("*.py") if path.stem != "submit")
    if not jobs:
        raise ConfigurationError(f"--working-dir: {folder} is no checkout of raygan: it has no jobs")
    if not command or Path(command[0]).name not in jobs:
        given = f"{command[0]!r} is no job" if command else "name a job after --"
        raise ConfigurationError(f"{given}; choose one of {', '.join(jobs)}")
    return shlex.join(["python", f"jobs/{Path(command[0]).name}", *command[1:]])


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"--address: {address!r} is not {_UNSAID}")
    try:
        client = JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError:
        raise RayganError(
            f"--address: {address} refuses the token, or there is none: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
            f"the cluster's unless ~/.ray/auth_token holds it"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RayganError(f"--address: no cluster answers at {address} ({first_line(error)}): give {_UNSAID}") from None
    version = client._server_ray_version  # what `get_version` gives is the API's
    if version != ray.__version__:
        raise RayganError(
            f"--address: {address} has Ray {version}, and here is {ray.__version__}: install the cluster's"
        )
    return client


def _refusal(settings: SubmitSettings, error: Exception) -> RayganError:
    said = str(error)
    if "exceeds the maximum size" in said:
        return RayganError(
            f"--working-dir: {settings.working_dir} is too large to be sent: name data and results in .rayignore, or "
            f"keep them elsewhere"
        )
    if "already exists" in said:
        return RayganError(f"--name: the cluster has had a job {settings.name} already: give another")
    return RayganError(f"the cluster refuses the job: {first_line(error)}")


def _reason(info: JobDetails) -> str:
    """Why a job ended without a status of its own: it couldn't be started, or was stopped. Else its log has said it."""
    if info.driver_exit_code is not None or not info.message:
        return ""
    lines = [line.strip() for line in info.message.splitlines() if line.strip()]
    # A failed pip says it somewhere in what it says; other traces end with it.
    return f": {next((line for line in lines if line.startswith('ERROR:')), lines[-1])}" if lines else ""


async def _follow(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)
