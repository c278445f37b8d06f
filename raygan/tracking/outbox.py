"""Sending a run's records from its `spool` to MLflow.

One `Sender`, a thread in the process that owns the run, sends them in order and deletes what the server has accepted.
While the server doesn't answer, the folder grows. What is left when the process ends or is killed is sent when the run
is opened again or the next run in this storage starts.
"""

from __future__ import annotations

import json
import posixpath
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from raygan.errors import first_line
from raygan.tracking.spool import Spool

#: Maximum number of metrics that MLflow accepts in one call.
_BATCH = 1000

#: Seconds between two attempts while the server doesn't answer, doubled each time up to a limit.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0


class Sender:
    """Sends a spool's records to MLflow from a thread of its own."""

    def __init__(self, client: MlflowClient, spool: Spool, first_wait_s: float = _FIRST_WAIT):
        """Start sending; `first_wait_s` is the time between two attempts, doubled while the server doesn't answer."""
        self._client, self._spool, self._first_wait_s = client, spool, first_wait_s
        self._last_steps: dict[str, int] = {}
        self._closing = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> int:
        """Send what is left for at most `timeout_s` seconds, and return the number of records not sent."""
        self._closing.set()
        self._thread.join(timeout_s)
        left = len(self._spool.waiting())
        if not left and not self._thread.is_alive():
            shutil.rmtree(self._spool.folder, ignore_errors=True)
        return left

    def _run(self) -> None:
        wait_s = self._first_wait_s
        while True:
            closing = self._closing.is_set()
            delivered = self._send_all()
            if closing and delivered:
                return
            wait_s = self._first_wait_s if delivered else min(_LONGEST_WAIT, wait_s * 2)
            # When closing, try again at once and then at short intervals until the caller gives up.
            self._closing.wait(wait_s) if not closing else time.sleep(self._first_wait_s)

    def _send_all(self) -> bool:
        """Send what is waiting, and return whether the server accepted it."""
        try:
            send_records(self._client, self._spool, self._last_steps)
        except Exception as error:
            # Tracking must never end a job: whatever the store raises is reported once and retried.
            if not self._complained:
                reason = first_line(error)
                tqdm.write(f"warning: MLflow does not accept records ({reason}); they wait on disk", file=sys.stderr)
            self._complained = True
            return False
        if self._complained:
            tqdm.write("MLflow accepts records again; nothing was lost", file=sys.stderr)
        self._complained = False
        return True


def send_records(client: MlflowClient, spool: Spool, last_steps: dict[str, int]) -> None:
    """Send every record of a spool, and delete each once the server has it.

    A metric is not sent again for a step that it has passed: a training that went back to a checkpoint passes the same
    steps twice. A record that the server refuses, for example because of a name, is reported and dropped; likewise one
    that is damaged, as after a loss of power. Raises what the client raises.

    Args:
        client: of the server.
        spool: what to send.
        last_steps: the last step of each metric on the server; filled as needed.
    """
    records = spool.waiting()
    alone = 0
    while records:
        metrics: list[Metric] = []
        taken: list[Path] = []
        # These enter `last_steps` only once the server has them. One batch may pass the same steps twice, if a job was
        # killed while the server was down.
        steps = dict(last_steps)
        for path in records:
            record = _read(path)
            if "metrics" not in record:
                break
            if taken and (alone or len(metrics) + len(record["metrics"]) > _BATCH):
                break
            new = _new_metrics(client, spool.run_id, record, steps)
            steps |= {metric.key: metric.step for metric in new}
            metrics += new
            taken.append(path)
        try:
            if metrics:
                for start in range(0, len(metrics), _BATCH):
                    client.log_batch(spool.run_id, metrics=metrics[start : start + _BATCH])
                last_steps |= steps
            elif not taken:
                taken = records[:1]
                _send_other(client, spool, _read(taken[0]))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(taken) > 1:  # one of them is refused; send them one by one
                alone = len(taken)
                continue
            # It would be refused forever and block everything after it.
            tqdm.write(f"warning: MLflow refuses a record: {first_line(error)}", file=sys.stderr)
        alone = max(0, alone - len(taken))
        for path in taken:
            path.unlink()
        records = records[len(taken) :]


def _read(path: Path) -> dict[str, Any]:
    """A record; empty if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}


def _new_metrics(client: MlflowClient, run_id: str, record: dict[str, Any], last_steps: dict[str, int]) -> list[Metric]:
    unknown = record["metrics"].keys() - last_steps.keys()
    there = client.get_run(run_id).data.metrics if unknown else {}
    for name in unknown:
        history = client.get_metric_history(run_id, name) if name in there else []
        last_steps[name] = max((metric.step for metric in history), default=-1)
    step, values = int(record["step"]), record["metrics"]
    return [Metric(name, value, record["time"], step) for name, value in values.items() if step > last_steps[name]]


def _send_other(client: MlflowClient, spool: Spool, record: dict[str, Any]) -> None:
    if "tags" in record:
        client.log_batch(spool.run_id, tags=[RunTag(name, value) for name, value in record["tags"].items()])
    elif "artifact" in record:
        _send_artifact(client, spool, record)
    elif "image" in record:
        _send_image(client, spool, record)
    elif "model" in record:
        _link_metrics(client, spool.run_id, record["model"], int(record["step"]))
    elif "status" in record:
        client.set_terminated(spool.run_id, record["status"], end_time=record["time"])
    else:
        _warn_of_damage("a record")


def _warn_of_damage(what: str) -> None:
    tqdm.write(f"warning: {what} is damaged and not sent to MLflow", file=sys.stderr)


def _link_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Log the run's metrics at a step again, as the model's. The same value at the same time is not logged twice."""
    for name in client.get_run(run_id).data.metrics:
        found = [metric for metric in client.get_metric_history(run_id, name) if metric.step == step]
        client.log_batch(
            run_id, [Metric(one.key, one.value, one.timestamp, one.step, model_id=model_id) for one in found[-1:]]
        )


def _send_image(client: MlflowClient, spool: Spool, record: dict[str, Any]) -> None:
    kept = spool.folder / record["content"]
    if not kept.exists():
        return  # already sent, by a process that was killed before it deleted the record
    try:
        picture = Image.open(kept)
    except UnidentifiedImageError:
        _warn_of_damage(f"picture {record['image']} at step {record['step']}")
    else:
        with picture:
            client.log_image(
                spool.run_id,
                picture,
                key=record["image"],
                step=record["step"],
                timestamp=record["time"],
                synchronous=True,
            )
    kept.unlink()


def _send_artifact(client: MlflowClient, spool: Spool, record: dict[str, Any]) -> None:
    kept = spool.folder / record["content"]
    if not kept.exists():
        return  # already sent, by a process that was killed before it deleted the record
    named = spool.folder / "sending" / posixpath.basename(record["artifact"])
    named.parent.mkdir(exist_ok=True)
    shutil.copyfile(kept, named)
    client.log_artifact(spool.run_id, str(named), posixpath.dirname(record["artifact"]) or None)
    shutil.rmtree(named.parent)
    kept.unlink()
