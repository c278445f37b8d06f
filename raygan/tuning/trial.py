"""One trial of a search: a training that reports its quality to Tune."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.tune

from raygan.runtime import storage
from raygan.runtime.runs import is_finished
from raygan.training.events import Quality
from raygan.training.settings import TrainSettings
from raygan.training.train import CollapsedError, Shared, TrialTraining, train
from raygan.tuning.space import settings_of

#: What a trial's KID counts as when its training collapsed: worse than any, and still a number to schedulers.
COLLAPSED = 1e9


#: Key of a trial's point that says that the scheduler copies weights between trials.
_POPULATION = "population"


@dataclass
class TrialRecord:
    """What became of one trial."""

    number: str
    point: dict[str, Any]
    state: str = "running"
    kid: float = math.inf
    kid_at: int = 0
    images: int = 0
    checkpoint: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)


def run_trial(point: dict[str, Any], base: TrainSettings, shared: Shared, search: str, parent: str) -> None:
    """One trial, in a process of Tune's; its training's workers are Ray Train's."""
    number = str(ray.tune.get_context().get_trial_id())
    donor = ray.tune.get_checkpoint()
    changes: dict[str, Any] = {"name": f"{search}.{number}", "allow_changes": True}
    population = point.pop(_POPULATION, False)
    if population and donor is not None:
        # Another trial's weights at another trial's age: a run of its own, so that its own checkpoints don't win.
        changes["name"] += f".{int(time.time())}"
    settings = settings_of(base, point).model_copy(update=changes)
    kept_in = storage.join(settings.storage, "runs", changes["name"], "judged.json")
    judged: list[dict[str, Any]] = (storage.read_json(kept_in) or {}).get("reports", [])
    if is_finished(settings, changes["name"]):
        # Its end had not reached Tune's records when the search was killed.
        for metrics in judged:
            ray.tune.report(metrics)
        return

    def told(quality: Quality) -> None:
        metrics = {**quality.metrics, "kid": quality.kid, "images": quality.images, "checkpoint": quality.checkpoint}
        metrics["run"] = settings.name
        judged.append(metrics)
        storage.write_json(kept_in, {"reports": judged})
        kept = storage.checkpoint_at(quality.checkpoint) if population else None
        ray.tune.report(metrics, checkpoint=kept)

    trial = TrialTraining(shared, parent, told, begin_from=donor if population else None)
    try:
        train(settings, trial)
    except CollapsedError as error:
        # It would collapse again: Tune must not try again, and the search goes on.
        ray.tune.report({"kid": COLLAPSED, "images": 0, "checkpoint": "", "collapsed": str(error)})
