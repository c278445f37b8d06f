"""Saying that a job waits for resources that others hold. Without a word, it looks like one that hangs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

import ray
from tqdm import tqdm

#: Seconds after which a task or training that waits for resources is no longer just starting.
LATE_S = 15.0


def say(wanted: Mapping[str, float], waits: str) -> None:
    """Say on standard error that something waits.

    Args:
        wanted: the resources that it waits for.
        waits: what it is, such as "the training".
    """
    listed = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    tqdm.write(
        f"waiting for {listed}, which the cluster doesn't have free (see `ray status`): {waits} starts once other jobs "
        f"end or nodes are added",
        file=sys.stderr,
    )


def watch_tasks() -> None:
    """While this process is connected, say once if tasks of its job wait and none runs.

    Trainings aren't tasks: `raygan.runtime.reservations` tells of them.
    """
    threading.Thread(target=_watch, name="waiting-tasks", daemon=True).start()


def _watch() -> None:
    pause, before = threading.Event(), False
    while not pause.wait(LATE_S) and ray.is_initialized():
        # A cluster without a dashboard doesn't tell, and one that ends raises whatever it likes.
        with suppress(Exception):
            wanted = _wanted_by_tasks()
            if wanted and before:
                say(wanted, "the work")
                return
            before = bool(wanted)


def _wanted_by_tasks() -> dict[str, float]:
    """What a task of this job waits for; empty if none waits, or if any runs."""
    from ray.util.state import list_tasks  # takes a third of a second to import

    job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    if list_tasks(filters=[job, ("state", "=", "RUNNING")], limit=1, raise_on_missing_output=False):
        return {}
    waiting = list_tasks(
        filters=[job, ("state", "=", "PENDING_NODE_ASSIGNMENT")], limit=1, detail=True, raise_on_missing_output=False
    )
    return dict(waiting[0].required_resources or {}) if waiting else {}
