"""Runs without a process: what they left is sent, and they are closed.

Each job that starts looks after the runs of dead owners (see `raygan.tracking.heartbeat`): in the outbox on its
machine's disk and, where the storage is remote, in what the storage keeps of the outboxes of others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from raygan.addresses import is_remote
from raygan.errors import RayganError, first_line
from raygan.machine import cache_folder
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings
from raygan.tracking.connection import tracking_uri
from raygan.tracking.heartbeat import Owner, fetch_kept
from raygan.tracking.outbox import send_records
from raygan.tracking.spool import Spool

if TYPE_CHECKING:
    from raygan.tracking.runs import Run

#: Seconds to wait for a process that was told to end.
_ENDING_S = 15.0


def outbox_of(settings: StorageSettings) -> Path:
    """The folder on this machine's disk where records wait; one for each tracking address."""
    root = cache_folder() if is_remote(settings.storage) else Path(os.path.abspath(settings.storage))
    return root / "outbox" / _place(settings)


def kept_outbox_of(settings: StorageSettings) -> str | None:
    """Where remote storage keeps what waits on machines' disks; None for local storage, which has the outbox itself."""
    return storage.join(settings.storage, "outbox", _place(settings)) if is_remote(settings.storage) else None


def _place(settings: StorageSettings) -> str:
    return hashlib.sha256(tracking_uri(settings).encode()).hexdigest()[:8]


def finish_orphans(client: MlflowClient, outbox: Path, kept: str | None, but: str | None) -> None:
    """Send what dead jobs left behind, and close their runs as KILLED, except `but`, which is being resumed."""
    here = {folder.name for folder in outbox.glob("*/")} if outbox.exists() else set()
    try:
        there = {storage.name(folder) for folder in storage.list_folders(kept, "*")} if kept else set()
        for run_id in sorted((here | there) - {but}):
            places = [str(outbox / run_id)] if run_id in here else []
            if run_id in there:  # whose owner is another one if the run went on elsewhere
                places.append(storage.join(str(kept), run_id))
            owners = map(Owner.read, places)
            if not any(owner.lives() for owner in owners if owner):
                _finish_orphan(client, outbox, kept, run_id)
    except RayganError as error:
        print(f"warning: runs of dead jobs may stay open: {error}", file=sys.stderr)


def _finish_orphan(client: MlflowClient, outbox: Path, kept: str | None, run_id: str) -> None:
    """Send one dead job's records, from this machine's disk and from the storage, and close its run."""
    try:
        spool = Spool(outbox, run_id)
        if kept:
            fetch_kept(storage.join(kept, run_id), spool)
        try:
            if client.get_run(run_id).info.status != "RUNNING":  # it went on elsewhere, and has ended there
                spool.forget_end()
            send_records(client, spool, {})
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else the run was deleted
                raise
        shutil.rmtree(spool.folder, ignore_errors=True)
        if kept:
            storage.delete(storage.join(kept, run_id))
    except FileNotFoundError:
        return  # another job that is starting takes care of them
    except Exception as error:  # whatever the artifacts' storage raises; a dead job's records must not end this one
        print(f"warning: records in {spool.folder} are still waiting: {first_line(error)}", file=sys.stderr)


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
    """Close a parent's child runs that were ended from outside as KILLED, after sending what they left behind.

    If MLflow doesn't answer, the next job closes them.
    """
    try:
        _close_children(settings, parent)
    except MlflowException as error:
        print(f"warning: runs of stopped trials stay open for now: {first_line(error)}", file=sys.stderr)


def _close_children(settings: StorageSettings, parent: Run) -> None:
    client, outbox, kept = parent.client, outbox_of(settings), kept_outbox_of(settings)
    for child in _running_children(parent):
        run_id = child.info.run_id
        owner = Owner.read(str(outbox / run_id))
        deadline = time.monotonic() + _ENDING_S
        while owner and owner.is_here and owner.lives() and time.monotonic() < deadline:
            time.sleep(0.1)
        if owner or kept:
            _finish_orphan(client, outbox, kept, run_id)
        else:  # its records are on another node's disk and sent with that node's next job
            client.set_terminated(run_id, "KILLED")
