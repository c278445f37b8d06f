"""MLflow runs: their parameters, metrics and artifacts.

Without an address, records go to a SQLite file under the storage folder and artifacts beside it, so that
nothing has to be started. A job owns one `Run`: it is resumed by id, never left RUNNING by a job that ends
by itself, and told apart as FINISHED, FAILED or KILLED. A server that stops answering loses nothing:
metrics wait in memory and are sent with the next ones.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from raygan.config import StorageSettings
from raygan.errors import RayganError

#: Longest parameter value that every MLflow store takes.
_PARAM_LENGTH = 500


def tracking_uri(settings: StorageSettings) -> str:
    """The MLflow address in force: as set, or the SQLite file under the storage folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if "://" in settings.storage:
        raise RayganError(
            f"--tracking-uri is needed with remote storage {settings.storage}: a SQLite file can't live there"
        )
    return f"sqlite:///{os.path.abspath(settings.storage)}/mlflow.db"


def ui_command(settings: StorageSettings) -> str:
    """The command that opens MLflow's pages on these records."""
    uri = tracking_uri(settings)
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def connect(settings: StorageSettings) -> MlflowClient:
    """A client whose server answers. Raises RayganError, within seconds, if it doesn't."""
    uri = tracking_uri(settings)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every table it makes
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        _make_folder(Path(uri.removeprefix("sqlite:///")).parent)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        # Stores raise what their drivers raise; whichever it is, the address is what the user can change.
        reason = str(error).strip().splitlines()[0]
        raise RayganError(f"MLflow at {_public(uri)} does not work: {reason}; check --tracking-uri") from None
    return client


class Run:
    """One MLflow run, whose metrics and artifacts are delivered without ever stopping the job.

    Made by `start_run`. `id` is MLflow's run id.
    """

    def __init__(self, client: MlflowClient, run_id: str):
        self.client, self.id = client, run_id
        self._last_step = self._logged_up_to()
        self._undelivered: list[Metric] = []
        self._complained = False

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Send metrics at a step (images seen, say); steps that were logged already are not logged twice.

        Such steps come again when workers or the driver went back to a checkpoint. NaN and infinity are left
        out, and said by a tag.
        """
        if step <= self._last_step:
            return
        self._last_step = step
        now = int(time.time() * 1000)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._undelivered += [Metric(name, value, now, step) for name, value in finite.items()]
        if len(finite) < len(values):
            bad = ", ".join(sorted(set(values) - set(finite)))
            self._attempt(lambda: self.client.set_tag(self.id, "raygan.not_finite", f"{bad} at step {step}"))
        self.deliver()

    def deliver(self) -> bool:
        """Try to send what is waiting; whether nothing waits any more."""
        while self._undelivered:
            part = self._undelivered[:1000]
            if not self._attempt(lambda part=part: self.client.log_batch(self.id, metrics=part)):
                return False
            del self._undelivered[: len(part)]
        return True

    def log_params(self, params: dict[str, Any]) -> None:
        """Log parameters; those that MLflow has already (of a resumed run) are left as they were."""
        known = self.client.get_run(self.id).data.params
        new = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in params.items() if name not in known]
        self._attempt(lambda: self.client.log_batch(self.id, params=new))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        self._attempt(lambda: self.client.log_artifact(self.id, str(path), folder))

    def log_bytes(self, content: bytes, artifact: str) -> None:
        """Write an artifact, such as ``pictures/samples.png``, from memory."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, posixpath.basename(artifact))
            path.write_bytes(content)
            self.log_file(path, posixpath.dirname(artifact) or None)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.deliver()
        self._attempt(lambda: self.client.set_terminated(self.id, status))

    def _logged_up_to(self) -> int:
        latest = self.client.get_run(self.id).data.metrics
        steps = [self.client.get_metric_history(self.id, name)[-1].step for name in list(latest)[:1]]
        return max(steps, default=-1)

    def _attempt(self, call: Any) -> bool:
        try:
            call()
        except Exception as error:
            # Tracking must never end a training: whatever the store raises is said once and tried again later.
            if not self._complained:
                reason = str(error).strip().splitlines()[0]
                print(f"warning: MLflow does not take records ({reason}); trying again later", file=sys.stderr)
            self._complained = True
            return False
        self._complained = False
        return True


@contextmanager
def start_run(
    settings: StorageSettings,
    name: str,
    *,
    job: str,
    params: dict[str, Any],
    tags: dict[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """A run for the length of a `with` block, closed as FINISHED, FAILED (exception) or KILLED (Ctrl-C).

    run_id: go on with this run if it is still there. Raises RayganError if MLflow doesn't answer.
    """
    client = connect(settings)
    run = Run(client, _resume(client, run_id) or _create(client, settings, name, job, tags or {}))
    run.log_params(params)
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED")


def _create(client: MlflowClient, settings: StorageSettings, name: str, job: str, tags: dict[str, str]) -> str:
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        location = None
        if tracking_uri(settings).startswith("sqlite:///") and "://" not in settings.storage:
            location = Path(os.path.abspath(settings.storage), "artifacts").as_uri()
        experiment_id = client.create_experiment(settings.experiment, artifact_location=location)
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
            f"MLflow at {_public(uri)} does not answer ({reason}): start it, or correct --tracking-uri "
            f"or MLFLOW_TRACKING_URI, or unset it to record in a local file"
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RayganError(f"--storage: cannot write to {folder}: {error.strerror}") from None


def _public(uri: str) -> str:
    """The address without its user name and password."""
    parts = urllib.parse.urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else uri
