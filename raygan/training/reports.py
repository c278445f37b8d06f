"""What workers report to Ray Train about a checkpoint, and how that becomes events for the driver."""

from __future__ import annotations

from typing import Any

import ray.train
from ray.util.queue import Queue

from raygan.errors import RayganError
from raygan.runtime import storage
from raygan.runtime.runs import address_of
from raygan.training.events import Picture, Quality, Report

#: The reported number by which Ray Train keeps checkpoints; higher is better. (If lower were better, Ray Train would
#: take a checkpoint without the number for the best one, and keep those that were never measured.)
SCORE = "negative_kid"

#: Key of a checkpoint's measurement among its reported metrics.
_MEASURED = "judged"

#: Key that marks a report whose checkpoint Ray Train will have measured.
TO_MEASURE = "to_measure"


class ForwardReports(ray.train.UserCallback):
    """Passes each report, once its checkpoint is safe, from Ray Train's controller to a queue."""

    def __init__(self, events: Queue, folder: str):
        self._events, self._folder = events, folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Send a `Report`, and a `Quality` if a worker has measured the checkpoint."""
        reported = metrics[0]
        # Waits until the queue has it: the driver must find the last report when the training has returned.
        shown = {name: value for name, value in reported.items() if name not in (SCORE, _MEASURED, TO_MEASURE)}
        self._events.put(Report(shown, measured=reported.get(TO_MEASURE, False)))
        quality = measured(reported, self._folder, checkpoint)
        if quality:
            self._events.put(quality)


def measurement(metrics: dict[str, float], kid: float) -> dict[str, Any]:
    """A checkpoint's quality metrics and KID, as Ray Train's metrics of the checkpoint."""
    return {SCORE: -kid, _MEASURED: {"metrics": metrics, "kid": kid}}


def measured(reported: dict[str, Any], folder: str, checkpoint: ray.train.Checkpoint) -> Quality | None:
    """The measurement among a checkpoint's metrics in Ray Train, if there is one."""
    if _MEASURED not in reported:
        return None
    return Quality(images=int(reported["images"]), checkpoint=address_of(folder, checkpoint), **reported[_MEASURED])


def written(folder: str, path: str, content: bytes) -> Picture:
    """Write a picture under the run's folder. A failure is no reason to end a training; the event tells of it."""
    try:
        storage.write_bytes(storage.join(folder, path), content)
    except RayganError as error:
        return Picture(path, str(error))
    return Picture(path)
