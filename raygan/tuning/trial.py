"""One trial of a search: a training that reports each KID to Tune, and what became of it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.tune

from raygan import tracking
from raygan.models.gan import Generator, load_generator
from raygan.runtime import storage
from raygan.runtime.runs import is_finished
from raygan.runtime.settings import StorageSettings
from raygan.training.checkpoints import is_whole
from raygan.training.events import Quality
from raygan.training.history import History
from raygan.training.settings import TrainSettings
from raygan.training.train import train
from raygan.training.trainer import CollapsedError, Shared, TrialTraining
from raygan.tuning.space import settings_of

#: KID of a collapsed trial: worse than any real one, but still a number for schedulers.
COLLAPSED = 1e9

#: Characters that a trial's run adds to the search's name: Tune's id and, in a population, the time.
NAME_EXTENSION = 25

#: Seconds for which a trial waits for an MLflow server that is away; if it failed, the search would go on without it.
_PATIENCE_S = 600.0

#: Key in a trial's point, set if the scheduler copies weights between trials.
POPULATION = "population"


@dataclass
class TrialRecord:
    """What became of a trial.

    Attributes:
        number: Tune's id.
        point: values of the searched settings.
        state: running, finished, stopped (early), failed or collapsed.
        kid: the lowest, infinite if none was measured.
        kid_at: images seen at the lowest KID.
        images: images seen in all.
        checkpoint: address of the checkpoint with the lowest KID.
        curve: every (images, KID).
    """

    number: str
    point: dict[str, Any]
    state: str = "running"
    kid: float = math.inf
    kid_at: int = 0
    images: int = 0
    checkpoint: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether that checkpoint is still there."""
        return bool(self.checkpoint) and storage.is_file(storage.join(self.checkpoint, "generator.json"))

    def generator(self) -> tuple[Generator, dict[str, Any]]:
        """That checkpoint's generator, and the `about` it was saved with. Raises RayganError if it can't be read."""
        with storage.files_of(storage.checkpoint_at(self.checkpoint)) as folder:
            return load_generator(folder)


def run_trial(point: dict[str, Any], base: TrainSettings, shared: Shared, search: str, parent: str) -> None:
    """Train in a process of Tune's, resuming an interrupted trial; Ray Train's workers do the work.

    Args:
        point: values of the searched settings.
        base: settings of all trials.
        shared: data of all trials.
        search: its name.
        parent: the search's MLflow run.
    """
    donor = ray.tune.get_checkpoint()
    name = f"{search}.{ray.tune.get_context().get_trial_id()}"
    population = point.pop(POPULATION, False)
    settings = settings_of(base, point)
    if population and donor is not None:
        if _is_complete(donor, settings):
            return  # nothing is left to train; the trial's last report stands
        # Another trial's weights: a new run, so that the trial's own old checkpoints don't win.
        name += f".{int(time.time())}"
    settings = settings.model_copy(update={"name": name, "allow_changes": True})
    reported_in = storage.join(settings.storage, "runs", name, "judged.json")
    reports: list[dict[str, Any]] = (storage.read_json(reported_in) or {}).get("reports", [])
    earlier = len(reports)

    def report(quality: Quality) -> None:
        metrics = {"kid": quality.kid, "images": quality.images, "checkpoint": quality.checkpoint, "run": name}
        reports.append({**quality.metrics, **metrics})
        storage.write_json(reported_in, {"reports": reports})
        with _whole_copy(quality.checkpoint) if population else nullcontext() as checkpoint:
            ray.tune.report(reports[-1], checkpoint=checkpoint)

    if not is_finished(settings, name):
        tracking.await_server(settings, _PATIENCE_S)
        try:
            train(settings, TrialTraining(shared, parent, report, begin_from=donor if population else None))
        except CollapsedError as error:
            # It would collapse again: Tune must not retry, and the search goes on.
            ray.tune.report({"kid": COLLAPSED, "images": 0, "checkpoint": "", "collapsed": str(error)})
            return
    if len(reports) == earlier:
        # The search was killed before Tune had recorded the trial's end, and Tune fails a trial without a report.
        for metrics in reports:
            ray.tune.report(metrics)


@contextmanager
def _whole_copy(address: str) -> Iterator[ray.tune.Checkpoint | None]:
    """A copy of a checkpoint for Tune to keep; None if the checkpoint is no longer whole.

    The training deletes it for better or later ones, perhaps while it is being read. Then others can take over an
    earlier one.
    """
    with tempfile.TemporaryDirectory(prefix="raygan-checkpoint-") as folder:
        with suppress(FileNotFoundError):
            storage.checkpoint_at(address).to_directory(folder)
        yield ray.tune.Checkpoint.from_directory(folder) if is_whole(Path(folder)) else None


def _is_complete(checkpoint: ray.tune.Checkpoint, settings: TrainSettings) -> bool:
    """Whether a checkpoint has been trained to the full length already."""
    with checkpoint.as_directory() as folder:
        _, about = load_generator(Path(folder))
    left = (settings.kimg or math.inf) - float(about["kimg"])
    return left * 1000 <= settings.batch_size / 2  # lengths are rounded to whole batches


def is_at(config: Mapping[str, Any] | None, point: Mapping[str, Any]) -> bool:
    """Whether a trial of Tune's, by its configuration, is at a point of the space."""
    return _point(config) == point


def _point(config: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (config or {}).items() if name != POPULATION}


def read_trial(result: ray.tune.Result, settings: StorageSettings) -> TrialRecord:
    """What became of a trial, from Tune's result and the training's own records, which may go further."""
    point = _point(result.config)
    metrics = result.metrics or {}
    record = TrialRecord(number=str(metrics.get("trial_id", "")), point=point)
    frame = result.metrics_dataframe
    if frame is not None and "kid" in frame:
        alive = frame[frame["kid"] < COLLAPSED]
        # Keyed by images: measurements from before a kill may have been reported twice.
        record.curve = sorted({int(row.images): float(row.kid) for row in alive.itertuples()}.items())
        if len(alive):
            best = alive.loc[alive["kid"].idxmin()]
            record.kid, record.kid_at = float(best["kid"]), int(best["images"])
            record.checkpoint = str(best["checkpoint"])
            run = str(alive["run"].iloc[-1])
            history = History(storage.join(settings.storage, "runs", run, "metrics.jsonl"))
            record.images = max((int(each["images"]) for each in history.records), default=0)
            record.state = "finished" if is_finished(settings, run) else "stopped"
    if result.error is not None:
        record.state = "failed"
    elif metrics.get("kid", COLLAPSED) >= COLLAPSED:
        record.state = "collapsed"
    return record
