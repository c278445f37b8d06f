"""MLflow runs: their parameters, metrics and artifacts.

Without an address, records go to a SQLite file under the storage folder and artifacts beside it, so that
nothing has to be started. A job owns one `Run`: it is resumed by id, never left RUNNING by a job that ends
by itself, and told apart as FINISHED, FAILED or KILLED. A server that stops answering loses nothing:
records wait on disk and are sent with the next ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import posixpath
import shutil
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from raygan.addresses import is_remote, join, public, split_query
from raygan.errors import RayganError, first_line, interruption
from raygan.runtime.settings import StorageSettings
from raygan.tracking.outbox import Sender, Spool, send_records

#: Longest parameter value that every MLflow store takes.
_PARAM_LENGTH = 500

#: Seconds that a job waits at its end for MLflow to take what is left.
_CLOSING_S = 20.0

#: Bytes of artifacts a second that MLflow must take on top of that, to be waited for.
_BYTES_PER_S = 1e6

#: Seconds that another job may take to make MLflow's tables.
_TABLES_S = 60.0

#: Seconds that a process may take to end when it was told to.
_ENDING_S = 15.0

#: What MLflow takes to reach artifacts, and raygan's extra that brings it, by the scheme of where they are.
_PACKAGES = {"s3": ("boto3", "s3"), "gs": ("google.cloud.storage", "gs")}

#: File of a spool that names the process that sends its records.
_OWNER = "owner"


def tracking_uri(settings: StorageSettings) -> str:
    """The MLflow address in force: as set, or the SQLite file under the storage folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if is_remote(settings.storage):
        raise RayganError(
            f"--tracking-uri is needed with remote storage {public(settings.storage)}: a SQLite file can't live there"
        )
    return f"sqlite:///{os.path.abspath(settings.storage)}/mlflow.db"


def ui_command(settings: StorageSettings) -> str:
    """The command that opens MLflow's pages on these records."""
    uri = public(tracking_uri(settings))
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def connect(settings: StorageSettings) -> MlflowClient:
    """A client whose server answers. Raises RayganError, within seconds, if it doesn't."""
    uri = tracking_uri(settings)
    # The client's own patience (minutes, many retries) would hold up the end of a job.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every table it makes
    # It tells of every table that it upgrades, and prints pages of SQL for an error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    _name_endpoint(settings.storage)
    alone: AbstractContextManager[Any] = nullcontext()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        _make_folder(database.parent)
        # Two that make the tables at once leave half of them.
        alone = FileLock(f"{database}.lock", timeout=_TABLES_S)
    try:
        with alone:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(settings.experiment)
    except Exception as error:
        # Stores raise what their drivers raise; whichever it is, the address is what the user can change.
        reason = first_line(error).replace(uri, public(uri))
        raise RayganError(f"MLflow at {public(uri)} does not work: {reason}; check --tracking-uri") from None
    _check_reachable(experiment.artifact_location if experiment else _artifact_location(settings))
    return client


def _artifact_location(settings: StorageSettings) -> str | None:
    """Where artifacts of a new experiment go; None where a server knows.

    By itself a database would have them in the folder that the job happens to stand in.
    """
    if tracking_uri(settings).startswith(("http://", "https://")):
        return None
    place, _ = split_query(join(settings.storage, "artifacts"))  # MLflow would append to the query
    return place if is_remote(place) else Path(place).absolute().as_uri()


def _check_reachable(location: str | None) -> None:
    """Raise RayganError if a package is missing that MLflow takes to reach artifacts there."""
    module, extra = _PACKAGES.get((location or "").partition("://")[0], (None, ""))
    if module is not None and not _is_installed(module):
        raise RayganError(
            f"MLflow keeps artifacts in {public(location or '')}, for which it needs {module}: "
            f"pip install 'raygan[{extra}]', or let an MLflow server keep them (--tracking-uri)"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is part of
        return False


def _name_endpoint(address: str) -> None:
    """Tell MLflow of the server that a storage's address names: it takes it from the environment only."""
    query = dict(urllib.parse.parse_qsl(split_query(address)[1].removeprefix("?")))
    endpoint = query.get("endpoint_override")
    if address.startswith("s3://") and endpoint:
        whole = endpoint if "://" in endpoint else f"{query.get('scheme', 'https')}://{endpoint}"
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", whole)


class Run:
    """One MLflow run, whose metrics and artifacts are delivered without ever stopping the job.

    Made by `start_run`. `id` is MLflow's run id; `spool` takes records from any process of this machine.
    """

    def __init__(self, client: MlflowClient, run_id: str, outbox: Path):
        self.client, self.id = client, run_id
        self.spool = Spool(outbox, run_id)
        # Numbers of processes are used again; with the second in which it began, one is unmistakable.
        owner = f"{socket.gethostname()} {os.getpid()} {int(psutil.Process().create_time())}"
        (self.spool.folder / _OWNER).write_text(owner, encoding="utf-8")
        self._sender = Sender(client, self.spool)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics at a step (images seen, say); NaN and infinity are left out, and told by a tag.

        A metric's steps that were logged already are not logged twice: they come again when workers or the
        driver went back to a checkpoint.
        """
        self.spool.put_metrics(values, step)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags, which show in MLflow's list of runs."""
        self.spool.put_tags({f"raygan.{name}": value for name, value in tags.items()})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters; those that MLflow has already (of a resumed run) are left as they were."""
        known = self.client.get_run(self.id).data.params
        new = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(params).items() if name not in known]
        self.client.log_batch(self.id, params=new)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        self.log_bytes(path.read_bytes(), posixpath.join(folder or "", path.name))

    def log_folder(self, path: Path, folder: str) -> None:
        """Copy a folder's files to the run's artifacts."""
        for file in sorted(path.rglob("*")):
            if file.is_file():
                self.log_bytes(file.read_bytes(), posixpath.join(folder, file.relative_to(path).as_posix()))

    def log_bytes(self, content: bytes, artifact: str) -> None:
        """Write an artifact, such as ``pictures/samples.png``, from memory."""
        self.spool.put_artifact(content, artifact)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, once all is delivered, or say where it waits."""
        self.spool.put_status(status)
        left = self._sender.close(_CLOSING_S + self.spool.bytes_waiting() / _BYTES_PER_S)
        if left:
            print(
                f"warning: MLflow did not take {left} records; they wait in {self.spool.folder} "
                f"and are sent when the next run of this storage starts",
                file=sys.stderr,
            )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots between the keys: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
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
    """A run for the length of a `with` block, closed as FINISHED, FAILED (exception) or KILLED (Ctrl-C).

    run_id: go on with this run if it is still there. Raises RayganError if MLflow doesn't answer, or if another
    process of this machine is at work on the run.
    """
    client = connect(settings)
    outbox = _outbox(settings)
    if run_id is not None:
        _check_alone(outbox / run_id / _OWNER, name)
    _finish_orphans(client, outbox, but=run_id)
    try:
        run = Run(client, _resume(client, run_id) or _create(client, settings, name, job, dict(tags or {})), outbox)
        run.log_params(params)
    except MlflowException as error:
        raise RayganError(f"MLflow opens no run in experiment {settings.experiment}: {first_line(error)}") from None
    try:
        yield run
    except BaseException as error:
        # Where even this can't be recorded, the reason is what counts; the next job closes the run.
        with suppress(RayganError):
            run.close("KILLED" if interruption(error) or isinstance(error, SystemExit) else "FAILED")
        raise
    run.close("FINISHED")


def _outbox(settings: StorageSettings) -> Path:
    """Where records wait, on this machine's disk; one folder for each tracking address."""
    root = Path.home() / ".cache" / "raygan" if is_remote(settings.storage) else Path(os.path.abspath(settings.storage))
    return root / "outbox" / hashlib.sha256(tracking_uri(settings).encode()).hexdigest()[:8]


def _finish_orphans(client: MlflowClient, outbox: Path, but: str | None) -> None:
    """Send what killed jobs left behind, and close their runs as KILLED; `but` is about to be resumed."""
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
        return  # another job that starts now has found them, too
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            shutil.rmtree(folder, ignore_errors=True)  # the run was deleted: nobody will ask for its records
        else:
            print(f"warning: records in {folder} still wait: {first_line(error)}", file=sys.stderr)


def kill_children(parent: Run) -> None:
    """Close as KILLED the runs under a parent whose job is being stopped, at once: Ray gives it 3 s.

    What they have still to send is sent with this machine's next job.
    """
    with suppress(Exception):  # why the job is being stopped is what counts
        for child in _running_children(parent):
            parent.client.set_terminated(child.info.run_id, "KILLED")


def _running_children(parent: Run) -> list[MlflowRun]:
    experiment = parent.client.get_run(parent.id).info.experiment_id
    still = f"tags.`mlflow.parentRunId` = '{parent.id}' and attributes.status = 'RUNNING'"
    return list(parent.client.search_runs([experiment], still))


def close_children(settings: StorageSettings, parent: Run) -> None:
    """Close as KILLED the runs under a parent that were ended from outside, with what they left to be sent."""
    client, outbox = parent.client, _outbox(settings)
    for child in _running_children(parent):
        folder = outbox / child.info.run_id
        owner = _read_owner(folder / _OWNER)
        deadline = time.monotonic() + _ENDING_S
        while owner and owner.runs() and time.monotonic() < deadline:
            time.sleep(0.1)
        if folder.exists():
            _finish_orphan(client, outbox, folder)
        else:  # on another node's disk, which sends them with that node's next job
            client.set_terminated(child.info.run_id, "KILLED")


@dataclass(frozen=True)
class _Owner:
    """The process that sends a spool's records: its host, its number, and the second in which it began."""

    host: str
    pid: int
    began: int

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def runs(self) -> bool:
        """Whether such a process of this host runs."""
        try:
            process = psutil.Process(self.pid)
            # A second's difference is rounding.
            return abs(process.create_time() - self.began) < 2 and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def _check_alone(path: Path, name: str) -> None:
    owner = _read_owner(path)
    if owner and owner.is_here and owner.pid != os.getpid() and owner.runs():
        raise RayganError(
            f"{name} is being worked on by process {owner.pid}: wait for it or stop it, or give another --name"
        )


def _alive(path: Path) -> bool:
    """Whether the process that owns a spool lives, or may live: another host's can't be asked."""
    owner = _read_owner(path)
    return owner is not None and (not owner.is_here or owner.runs())


def _read_owner(path: Path) -> _Owner | None:
    try:
        host, pid, began = path.read_text(encoding="utf-8").split()
        return _Owner(host, int(pid), int(began))
    except (OSError, ValueError):
        return None


def _create(client: MlflowClient, settings: StorageSettings, name: str, job: str, tags: dict[str, str]) -> str:
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        try:
            location = _artifact_location(settings)
            experiment_id = client.create_experiment(settings.experiment, artifact_location=location)
        except MlflowException as error:
            there = client.get_experiment_by_name(settings.experiment)  # made by another job in the meantime
            if there is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment_id = there.experiment_id
    else:
        experiment_id = experiment.experiment_id
    run = client.create_run(experiment_id, run_name=name, tags={"raygan.job": job, **tags})
    return str(run.info.run_id)


def _resume(client: MlflowClient, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    try:
        client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return None  # deleted, or another server: a new run takes its place
    client.log_batch(run_id, tags=[RunTag("raygan.resumed", time.strftime("%Y-%m-%d %H:%M:%S"))])
    return run_id


def _check_server(uri: str) -> None:
    """Ask the server once: MLflow's own client would try for minutes before it gave up."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310 (http or https, checked)
    except urllib.error.HTTPError:
        pass  # it answers; a server behind a proxy may not have /health
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RayganError(
            f"MLflow at {public(uri)} does not answer ({reason}): start it, or correct --tracking-uri "
            f"or MLFLOW_TRACKING_URI, or unset it to record in a local file"
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RayganError(f"--storage: cannot write to {folder}: {error.strerror}") from None
