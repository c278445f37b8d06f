"""MLflow runs: parameters, metrics, tags and artifacts.

A job owns one `Run`, which is resumed by id and ends as FINISHED, FAILED or KILLED. If the server stops answering,
nothing is lost: records wait on disk and are sent with later ones. A spool names its owner, the process that sends its
records; the next job closes the runs of owners that were killed.

Tags: `raygan.job` and `raygan.resumed` are set here, `raygan.label` and others by the job that calls `start_run`.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from raygan.addresses import is_remote, slug
from raygan.errors import RayganError, first_line, interruption
from raygan.machine import cache_folder
from raygan.runtime.settings import StorageSettings
from raygan.tracking.connection import check_records, tracking_uri
from raygan.tracking.outbox import Sender, Spool, send_records

#: Longest parameter value that every MLflow store accepts, in characters.
_PARAM_LENGTH = 500

#: Longest name of a metric, in characters.
_METRIC_LENGTH = 250

#: Seconds that a job waits at its end for MLflow to accept what is left.
_CLOSING_S = 20.0

#: Waiting artifacts extend that time, at so many bytes per second.
_BYTES_PER_S = 1e6

#: Seconds to wait for a process that was told to end.
_ENDING_S = 15.0

#: File in a spool that names the process that sends its records.
_OWNER = "owner"


class Run:
    """One MLflow run. Recording never blocks the job. Made by `start_run`.

    Attributes:
        client: of the MLflow server.
        id: MLflow's run id.
        spool: takes records from any process of this machine.
    """

    def __init__(self, client: MlflowClient, run_id: str, outbox: Path):
        self.client, self.id = client, run_id
        self.spool = Spool(outbox, run_id)
        # Process ids are reused; together with the time of its start, a process is unique.
        owner = f"{socket.gethostname()} {os.getpid()} {int(psutil.Process().create_time())}"
        (self.spool.folder / _OWNER).write_text(owner, encoding="utf-8")
        self._sender = Sender(client, self.spool)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step, such as images seen. NaN and infinity are left out and named in a tag.

        A step that comes again, because workers or the driver went back to a checkpoint, is not logged twice.
        """
        self.spool.put_metrics({metric_name(name): value for name, value in values.items()}, step)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log tags, each with the prefix ``raygan.``; MLflow's list of runs shows them."""
        self.spool.put_tags({f"raygan.{name}": value for name, value in tags.items()})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters. Those that a resumed run already has stay as they are."""
        known = self.client.get_run(self.id).data.params
        new = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(params).items() if name not in known]
        self.client.log_batch(self.id, params=new)

    def log_folder(self, path: Path, folder: str) -> None:
        """Log a folder's files as artifacts."""
        for file in sorted(path.rglob("*")):
            if file.is_file():
                self.log_bytes(file.read_bytes(), posixpath.join(folder, file.relative_to(path).as_posix()))

    def log_bytes(self, content: bytes, artifact: str) -> None:
        """Log an artifact, such as ``pictures/samples.png``, from memory."""
        self.spool.put_artifact(content, artifact)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED once everything is sent, or report where the rest waits."""
        self.spool.put_status(status)
        left = self._sender.close(_CLOSING_S + self.spool.bytes_waiting() / _BYTES_PER_S)
        if left:
            print(
                f"warning: MLflow did not accept {left} records; they wait in {self.spool.folder} "
                f"and are sent when the next run in this storage starts",
                file=sys.stderr,
            )


def metric_name(name: str) -> str:
    """A metric's name as every MLflow store takes it. What MLflow refuses, a digest stands for."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    clean = "/".join(part if re.fullmatch(r"[\w. :-]+", part) else slug(part) for part in parts)
    return clean if len(clean) <= _METRIC_LENGTH else slug(clean, _METRIC_LENGTH)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dots between the keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextmanager
def start_run(
    settings: StorageSettings,
    name: str,
    *,
    job: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """Open a run for a `with` block. It ends as FINISHED, FAILED (exception) or KILLED (Ctrl-C, SIGTERM).

    Args:
        settings: the storage and MLflow's address.
        name: shown by MLflow.
        job: the job's name, for the tag ``raygan.job``.
        params: the run's parameters; nested ones get dotted names.
        tags: of a new run.
        run_id: resume this run if it still exists.

    Raises:
        RayganError: MLflow doesn't answer, or another process of this machine works on the run.
    """
    client, experiment = check_records(settings)
    outbox = _outbox(settings)
    if run_id is not None:
        _check_alone(outbox / run_id / _OWNER, name)
    _finish_orphans(client, outbox, but=run_id)
    try:
        run = Run(client, _resume(client, run_id) or _create(client, experiment, name, job, dict(tags or {})), outbox)
        run.log_params(params)
    except MlflowException as error:
        raise RayganError(f"MLflow opens no run in experiment {settings.experiment}: {first_line(error)}") from None
    try:
        yield run
    except BaseException as error:
        # If even this can't be recorded, the original error matters more; the next job closes the run.
        with suppress(RayganError):
            run.close("KILLED" if interruption(error) or isinstance(error, SystemExit) else "FAILED")
        raise
    run.close("FINISHED")


def _outbox(settings: StorageSettings) -> Path:
    """The folder on this machine's disk where records wait; one for each tracking address."""
    root = cache_folder() if is_remote(settings.storage) else Path(os.path.abspath(settings.storage))
    return root / "outbox" / hashlib.sha256(tracking_uri(settings).encode()).hexdigest()[:8]


def _finish_orphans(client: MlflowClient, outbox: Path, but: str | None) -> None:
    """Send what killed jobs left behind, and close their runs as KILLED, except `but`, which is being resumed."""
    for folder in sorted(outbox.glob("*/")) if outbox.exists() else []:
        if folder.name != but and not _alive(folder / _OWNER):
            _finish_orphan(client, outbox, folder)


def _finish_orphan(client: MlflowClient, outbox: Path, folder: Path) -> None:
    try:
        spool = Spool(outbox, folder.name)
        send_records(client, spool, {})
        if client.get_run(folder.name).info.status == "RUNNING":
            client.set_terminated(folder.name, "KILLED")
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # another job that is starting takes care of them
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            shutil.rmtree(folder, ignore_errors=True)  # the run was deleted
        else:
            print(f"warning: records in {folder} are still waiting: {first_line(error)}", file=sys.stderr)


def kill_children(parent: Run) -> None:
    """Close a parent's running child runs as KILLED, while the job is being stopped.

    Ray allows 3 s for that, so what they have not sent yet is sent with this machine's next job.
    """
    with suppress(Exception):  # the reason for stopping matters more
        for child in _running_children(parent):
            parent.client.set_terminated(child.info.run_id, "KILLED")


def _running_children(parent: Run) -> list[MlflowRun]:
    experiment = parent.client.get_run(parent.id).info.experiment_id
    still = f"tags.`mlflow.parentRunId` = '{parent.id}' and attributes.status = 'RUNNING'"
    return list(parent.client.search_runs([experiment], still))


def close_children(settings: StorageSettings, parent: Run) -> None:
    """Close a parent's child runs that were ended from outside as KILLED, after sending what they left behind."""
    client, outbox = parent.client, _outbox(settings)
    for child in _running_children(parent):
        folder = outbox / child.info.run_id
        owner = _read_owner(folder / _OWNER)
        deadline = time.monotonic() + _ENDING_S
        while owner and owner.runs() and time.monotonic() < deadline:
            time.sleep(0.1)
        if folder.exists():
            _finish_orphan(client, outbox, folder)
        else:  # its records are on another node's disk and sent with that node's next job
            client.set_terminated(child.info.run_id, "KILLED")


@dataclass(frozen=True)
class _Owner:
    """The process that sends a spool's records: its host, its id, and the second of its start."""

    host: str
    pid: int
    started: int

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def runs(self) -> bool:
        """Whether this process is running on this host."""
        try:
            process = psutil.Process(self.pid)
            # A difference of one second is rounding.
            return abs(process.create_time() - self.started) < 2 and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def _check_alone(path: Path, name: str) -> None:
    owner = _read_owner(path)
    if owner and owner.is_here and owner.pid != os.getpid() and owner.runs():
        raise RayganError(f"{name} is in use by process {owner.pid}: wait for it, stop it, or give another --name")


def _alive(path: Path) -> bool:
    """Whether the process that owns a spool is running, or may be: on another host that can't be checked."""
    owner = _read_owner(path)
    return owner is not None and (not owner.is_here or owner.runs())


def _read_owner(path: Path) -> _Owner | None:
    try:
        host, pid, started = path.read_text(encoding="utf-8").split()
        return _Owner(host, int(pid), int(started))
    except (OSError, ValueError):
        return None


def _create(client: MlflowClient, experiment: str, name: str, job: str, tags: dict[str, str]) -> str:
    run = client.create_run(experiment, run_name=name, tags={"raygan.job": job, **tags})
    return str(run.info.run_id)


def _resume(client: MlflowClient, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    try:
        client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return None  # deleted, or on another server: a new run takes its place
    client.log_batch(run_id, tags=[RunTag("raygan.resumed", time.strftime("%Y-%m-%d %H:%M:%S"))])
    return run_id
