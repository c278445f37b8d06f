"""MLflow runs: parameters, metrics, tags and artifacts.

A job owns one `Run`, which is resumed by id and ends as FINISHED, FAILED or KILLED. If the server stops answering,
nothing is lost: records wait on disk and are sent with later ones. A spool names its owner, the process that sends its
records; the next job closes the runs of owners that are dead (see `raygan.tracking.orphans`).

Tags: `raygan.job` and `raygan.resumed` are set here. The job passes others, such as `raygan.label`, to `start_run`;
later ones come through `Run.log_tags` or `raygan.tracking.callback`.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
from mlflow.exceptions import MlflowException

from raygan.addresses import slug
from raygan.errors import RayganError, first_line, interruption
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings
from raygan.tracking.connection import check_records
from raygan.tracking.heartbeat import ALIVE_WITHIN_S, Heartbeat, Owner, fetch_kept, take_over
from raygan.tracking.orphans import finish_orphans, kept_outbox_of, outbox_of
from raygan.tracking.outbox import Sender
from raygan.tracking.spool import Spool

#: Longest parameter value that every MLflow store accepts, in characters.
_PARAM_LENGTH = 500

#: Longest name of a metric, in characters.
_METRIC_LENGTH = 250

#: Parameters that MLflow accepts in one call.
_PARAMS = 100

#: Longest digest of a data set that MLflow accepts, in characters.
_DIGEST_LENGTH = 36

#: Seconds that a job waits at its end for MLflow to accept what is left.
_CLOSING_S = 20.0

#: Waiting artifacts extend that time, at this many bytes per second.
_BYTES_PER_S = 1e6


class Run:
    """One MLflow run. Recording never blocks the job. Made by `start_run`.

    Attributes:
        client: of the MLflow server.
        id: MLflow's run id.
        spool: takes records from any process of this machine.
    """

    def __init__(self, client: MlflowClient, run_id: str, outbox: Path, kept: str | None = None):
        self.client, self.id = client, run_id
        self.spool = Spool(outbox, run_id)
        if kept is not None:
            fetch_kept(kept, self.spool)  # of the process whose run this one resumes
        self._heartbeat = Heartbeat(self.spool, kept)
        self.spool.forget_end()
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
        for start in range(0, len(new), _PARAMS):
            self.client.log_batch(self.id, params=new[start : start + _PARAMS])

    def log_folder(self, path: Path, folder: str) -> None:
        """Log a folder's files as artifacts."""
        for file in sorted(path.rglob("*")):
            if file.is_file():
                self.log_bytes(file.read_bytes(), posixpath.join(folder, file.relative_to(path).as_posix()))

    def log_bytes(self, content: bytes, artifact: str) -> None:
        """Log an artifact, such as ``pictures/samples.png``, from memory."""
        self.spool.put_artifact(content, artifact)

    def log_image(self, content: bytes, name: str, step: int) -> None:
        """Log a picture file of a series at a step, such as images seen; MLflow compares the series of several runs."""
        self.spool.put_image(content, name, step)

    def log_data(self, address: str, digest: str, profile: Mapping[str, Any], context: str = "training") -> None:
        """Log a data set that the run uses.

        Args:
            address: where it is, without secrets.
            digest: tells it from others of the same name.
            profile: JSON-ready facts, such as counts.
            context: what for, "training" or "evaluation".

        Raises:
            RayganError: MLflow doesn't answer.
        """
        dataset = Dataset(
            name=posixpath.basename(address.rstrip("/")) or "data",
            digest=digest[:_DIGEST_LENGTH],
            source_type=urllib.parse.urlsplit(address).scheme or "local",
            source=json.dumps({"uri": address}),
            profile=json.dumps(dict(profile)),
        )
        tags = [InputTag("mlflow.data.context", context)]
        try:
            self.client.log_inputs(self.id, datasets=[DatasetInput(dataset, tags)])
        except MlflowException as error:
            raise RayganError(f"MLflow can't record the data set: {first_line(error)}") from None

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED once everything is sent, or report where the rest waits."""
        self._heartbeat.stop()
        self.spool.put_status(status)
        left = self._sender.close(_CLOSING_S + self.spool.bytes_waiting() / _BYTES_PER_S)
        self._heartbeat.leave()
        if left:
            print(
                f"warning: MLflow did not accept {left} records; they wait in {self.spool.folder} "
                f"and are sent when the next run in this storage starts",
                file=sys.stderr,
            )


def metric_name(name: str) -> str:
    """A metric's name as every MLflow store takes it. A digest replaces what MLflow would refuse."""
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
        RayganError: MLflow doesn't answer, or another process works on the run.
    """
    client, experiment = check_records(settings)
    outbox, kept = outbox_of(settings), kept_outbox_of(settings)
    if run_id is not None:
        _check_alone(outbox / run_id, kept and storage.join(kept, run_id), name)
        take_over(outbox / run_id, kept and storage.join(kept, run_id))
    finish_orphans(client, outbox, kept, but=run_id)
    try:
        found = _resume(client, run_id) or _create(client, experiment, name, job, dict(tags or {}))
        own = kept and storage.join(kept, found)
        if found != run_id:  # a resumed run's was taken over before others could be closed
            take_over(outbox / found, own)
        run = Run(client, found, outbox, own)
        run.log_params(params)
    except MlflowException as error:
        raise RayganError(f"MLflow can't open a run in experiment {settings.experiment}: {first_line(error)}") from None
    monitor = _system_metrics(run) if settings.system_metrics else nullcontext()
    try:
        with monitor:
            yield run
    except BaseException as error:
        # If even this can't be recorded, the original error matters more; the next job closes the run.
        with suppress(RayganError):
            run.close("KILLED" if interruption(error) or isinstance(error, SystemExit) else "FAILED")
        raise
    run.close("FINISHED")


@contextmanager
def _system_metrics(run: Run) -> Iterator[None]:
    """Record this machine's load, under ``system/``, until the block ends."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.id, resume_logging=True, tracking_uri=run.client.tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _check_alone(folder: Path, kept: str | None, name: str) -> None:
    """Raise RayganError if another process works on the run.

    Args:
        folder: the run's outbox on this machine's disk.
        kept: where the storage keeps it, if it is not in the storage itself.
        name: of the run.
    """
    owner = Owner.read(kept or str(folder))
    if owner is None or (owner.is_here and owner.pid == os.getpid()) or not owner.lives():
        return
    if not owner.is_here:
        waiting = f"waiting for up to {ALIVE_WITHIN_S:.0f} s to see whether it still is"
        print(f"{name} was in use on {owner.host} lately: {waiting}", flush=True)
    if owner.is_here or owner.beats():
        where = f"process {owner.pid}" + ("" if owner.is_here else f" on {owner.host}")
        raise RayganError(f"{name} is in use by {where}: wait for it, stop it, or give another --name")


def _create(client: MlflowClient, experiment: str, name: str, job: str, tags: dict[str, str]) -> str:
    run = client.create_run(experiment, run_name=name, tags={"raygan.job": job, **tags})
    return str(run.info.run_id)


def _resume(client: MlflowClient, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    try:
        client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the server doesn't answer
        return None  # deleted, or on another server: a new run takes its place
    client.log_batch(run_id, tags=[RunTag("raygan.resumed", time.strftime("%Y-%m-%d %H:%M:%S"))])
    return run_id
