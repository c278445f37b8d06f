"""Turns a training's events into a progress bar, the history, and pictures and quality in MLflow."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import ray.train
from tqdm import tqdm

from raygan import tracking
from raygan.errors import RayganError, first_line
from raygan.runtime import storage
from raygan.runtime.progress import ImageProgress, Seen
from raygan.tracking.callback import numbers
from raygan.training.events import Collapse, Notice, Picture, Quality, Report, Tick, Unmeasured
from raygan.training.history import History
from raygan.training.reports import measured
from raygan.training.schedule import Schedule

#: Pictures drawn again and again, by name and images seen.
_SERIES = re.compile(r"pictures/(?P<name>\w+)-(?P<images>\d+)-images\.png")

#: A training's threads wait for one another: if each lacks a core for this share of the time, it runs far slower. Ray's
#: processes and the training's own start take less, or not for so many minutes.
_CROWDED, _CROWDED_MINUTES = 0.3, 1.0


#: Seconds after the end of a training from which a measurement that is still to come is worth a word.
_MEASURING_S = 5.0


class MeasuringStuckError(RayganError):
    """The training is over, but the measurements that Ray Train still waits for don't end."""


class Progress:
    """Follows one training.

    Attributes:
        collapse: of the training, if it collapsed.
        images: real images seen so far.
    """

    def __init__(
        self,
        schedule: Schedule,
        folder: str,
        history: History,
        log: tracking.Run,
        told: Callable[[Quality], None] | None = None,
        patience_s: float = math.inf,
    ):
        """Open the bar.

        Args:
            schedule: the training's.
            folder: the run's folder.
            history: where metrics are kept.
            log: the MLflow run.
            told: called with each measurement of a search's trial, whose bar is hidden: a search has its own.
            patience_s: seconds after which a measurement is given up.
        """
        self.collapse: Collapse | None = None
        self.images = 0
        self._most, self._minutes = schedule.total, schedule.minutes
        self._folder, self._history, self._log, self._told = folder, history, log, told
        total = self._most if schedule.minutes == math.inf else None
        self._bar = ImageProgress(total, "training", hidden=told is not None)
        self._shown: dict[str, str] = {}
        self._warned = False
        self._crowded_since: float | None = None  # minutes; infinite once the user knows
        self._patience_s = patience_s
        self._awaited: list[int] = []  # images of checkpoints that are to be measured, one after another
        self._said_measuring = False
        self._over = False  # whether the last report has come
        self._moved = 0.0  # when a measurement last ended, or the first of those was asked for

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()  # first: saving the history may print a warning
        self._history.save()

    def handle(self, event: Any) -> None:
        """Handle an event of `raygan.training.events`."""
        if isinstance(event, Tick):
            self._show(event.images)
        elif isinstance(event, Picture):
            self._pass_on(event)
        elif isinstance(event, Report):
            self._report(numbers(event.metrics))
            if event.measured:
                self._moved = self._moved if self._awaited else time.monotonic()
                self._awaited.append(int(event.metrics["images"]))
        elif isinstance(event, Unmeasured):
            self._unmeasured(event)
        elif isinstance(event, Quality):
            self._measured(event)
        elif isinstance(event, Notice):
            tqdm.write(f"a node is about to be taken away: saving at {event.kimg:.3g} kimg", file=sys.stderr)
        elif isinstance(event, Collapse):
            self.collapse = event
        self._history.save(at_least_every_s=5)

    def look(self) -> None:
        """Tell of a measurement that is all that is left to do, or that should have come by now.

        The latter's task was killed, or found no room.

        Raises:
            MeasuringStuckError: nothing else is left to do.
        """
        waited = time.monotonic() - self._moved
        if self._awaited and self._over and waited >= _MEASURING_S and not (self._told or self._said_measuring):
            self._said_measuring = True
            tqdm.write("the training is done; its last checkpoint is still being measured", file=sys.stderr)
        if self._awaited and waited >= self._patience_s:
            reason = "its task did not end in time, or found no room in the cluster"
            over = self._over or self.collapse is not None
            for images in list(self._awaited) if over else self._awaited[:1]:
                self._unmeasured(Unmeasured(images, reason))
            if over:
                raise MeasuringStuckError(reason)

    def catch_up(self, result: ray.train.Result) -> None:
        """Handle measurements of kept checkpoints that an earlier driver did not hear of before it died."""
        for checkpoint, metrics in result.best_checkpoints or []:
            event = measured(metrics, self._folder, checkpoint)
            if event and not self._history.knows({**event.metrics, "images": event.images}):
                self._measured(event)
        for images in list(self._awaited):
            self._unmeasured(Unmeasured(images, "its task ended without a result"))

    def _ended(self, images: int) -> None:
        """Stop waiting for a measurement; the next one begins only now."""
        self._awaited = [other for other in self._awaited if other != images]
        self._moved = time.monotonic()

    def _unmeasured(self, event: Unmeasured) -> None:
        """Tell the user and MLflow that a checkpoint can't be chosen."""
        self._ended(event.images)
        missing = f"quality at {event.images / 1000:.3g} kimg is not measured: {event.reason}"
        tqdm.write(f"warning: {missing}", file=sys.stderr)
        self._log.log_tags({"unmeasured": missing[:500]})
        self._shown |= {"kid": f"none at {event.images / 1000:.0f} kimg"}

    def _pass_on(self, picture: Picture) -> None:
        """Copy a picture to MLflow. A storage that doesn't answer is no reason to end a training."""
        try:
            if picture.trouble:
                raise RayganError(picture.trouble)
            content = storage.read_bytes(storage.join(self._folder, picture.path))
        except (RayganError, FileNotFoundError) as error:
            if not self._warned:
                tqdm.write(f"warning: can't copy {picture.path} to MLflow: {first_line(error)}", file=sys.stderr)
            self._warned = True
            return
        series = _SERIES.fullmatch(picture.path)
        if series:
            self._log.log_image(content, series["name"], int(series["images"]))
        else:
            self._log.log_bytes(content, picture.path)

    def _report(self, metrics: dict[str, float]) -> None:
        self._over = metrics["images"] >= self._most or metrics["minutes"] >= self._minutes
        self._history.add(metrics)
        self._look_for_crowd(metrics["minutes"], metrics.get("without_core", 0.0))
        total = None
        if self._minutes < math.inf:
            coming = 60 * max(0.0, self._minutes - metrics["minutes"]) * metrics["images_per_second"]
            total = min(self._most, int(metrics["images"] + coming))
        self._shown |= {name: f"{value:.3g}" for name, value in metrics.items() if name.endswith("loss")}
        self._show(int(metrics["images"]), total)

    def _look_for_crowd(self, minutes: float, without_core: float) -> None:
        """Tell, once, of other programs that take the training's cores; a search's trials share them anyway."""
        if without_core < _CROWDED and self._crowded_since != math.inf:
            self._crowded_since = None
            return
        if self._crowded_since is None:
            self._crowded_since = minutes
        if minutes - self._crowded_since < _CROWDED_MINUTES or self._told:
            return
        self._crowded_since = math.inf
        tqdm.write(
            f"warning: other programs keep the training's threads from a core for {without_core:.0%} of the time: end "
            f"them, or resume with a smaller --cpus-per-worker, which can be several times as fast",
            file=sys.stderr,
        )

    def _measured(self, event: Quality) -> None:
        self._ended(event.images)
        self._history.add({**event.metrics, "images": event.images})
        # Not through Ray Train's callback: by now the training is long past the images that were measured.
        self._log.log_metrics(event.metrics, event.images)
        if self._told:
            self._told(event)
        self._shown |= {"kid": f"{next(iter(event.metrics.values())):.3g} at {event.images / 1000:.0f} kimg"}

    def _show(self, images: int, total: int | None = None) -> None:
        self.images = max(self.images, images)
        says = ", ".join(f"{name}={value}" for name, value in self._shown.items())
        self._bar.show(Seen(images, says=says), total=total)
