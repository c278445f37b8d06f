"""The drills: what is broken, when, and what must come out all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from raygan.drills.stage import (
    BATCH,
    CHECKPOINT_BATCHES,
    LOG_BATCHES,
    Job,
    Nodes,
    Stage,
    Watched,
)

_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"

#: Images that a training has seen before it is disturbed: some checkpoints, and enough left to see it come back.
_BEFORE = 2 * CHECKPOINT_BATCHES * BATCH


@dataclass
class Found:
    """What a drill found.

    checks: what must hold, and whether it does. back_after: seconds from the fault to the first work that is new.
    again_kimg: thousands of images that were trained a second time.
    """

    checks: dict[str, bool] = field(default_factory=dict)
    back_after: float | None = None
    again_kimg: float | None = None
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return all(self.checks.values())


@dataclass(frozen=True)
class Drill:
    """about: what is done, in a line."""

    about: str
    run: Callable[[Stage], Found]


def _kill_worker(stage: Stage) -> Found:
    def fault(nodes: Nodes) -> None:
        nodes.processes(_WORKER)[-1].kill()

    return _disturbed(stage, "worker", fault)


def _kill_controller(stage: Stage) -> Found:
    def fault(nodes: Nodes) -> None:
        nodes.processes(_CONTROLLER)[0].kill()

    return _disturbed(stage, "controller", fault)


def _disturbed(stage: Stage, name: str, fault: Callable[[Nodes], None]) -> Found:
    """A fault that ends a training's processes on a cluster that stays as it is."""
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, name, "--num-workers", "2"), Watched(stage, name)
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        found = _hurt(job, run, lambda: fault(nodes))
        found.checks |= {"ends well": job.end() == 0, **_as_undisturbed(stage, run)}
    return found


def _hurt(job: Job, run: Watched, fault: Callable[[], None]) -> Found:
    """Do it, and see after how long the training is further than it was, and what it did twice."""
    before, saved = run.seen(), run.saved()
    began = time.monotonic()
    fault()
    job.wait_for(lambda: run.seen() > before, "progress after the fault")
    return Found(back_after=time.monotonic() - began, again_kimg=max(0, before - saved) / 1000)


def _as_undisturbed(stage: Stage, run: Watched) -> dict[str, bool]:
    """Checks of a training that had to come to the very end of the undisturbed one."""
    wanted, weights = Watched(stage, "undisturbed").weights(), run.weights()
    same = wanted.keys() == weights.keys() and all(torch.equal(wanted[name], weights[name]) for name in wanted)
    return {"weights as undisturbed": same, **_whole_records(run)}


def _whole_records(run: Watched) -> dict[str, bool]:
    """MLflow has one finished run with every metric once."""
    runs, steps = run.runs(), run.steps()
    cadence = LOG_BATCHES * BATCH
    last = max(steps, default=0)
    due = set(range(cadence, last + 1, cadence)) | {last}
    return {
        "one run in MLflow, finished": [each.info.status for each in runs] == ["FINISHED"],
        "metrics without gaps or doubles": due == set(steps) and len(steps) == len(due),
    }


DRILLS: dict[str, Drill] = {
    "worker": Drill("SIGKILL to one of two training workers", _kill_worker),
    "controller": Drill("SIGKILL to Ray Train's controller", _kill_controller),
}
