"""All drills by name, and those that lose a node during `prepare` and `tune`."""

from __future__ import annotations

import time

from ray.util.state import list_tasks

from raygan.benchmarks.faults.harness import BATCH, CHUNK, Baseline, Stage, digest, kimg
from raygan.benchmarks.faults.outages import fill_storage, lose_mlflow
from raygan.benchmarks.faults.outcome import Drill, Outcome
from raygan.benchmarks.faults.reading import lose_node_reading
from raygan.benchmarks.faults.serving import lose_serving_node
from raygan.benchmarks.faults.training import (
    has_each_once,
    kill_controller,
    kill_worker,
    lose_half,
    lose_node,
    stop_submitted,
    take_node,
)
from raygan.benchmarks.faults.watched import WatchedRun

#: Ray's name of the task that examines photos.
_EXAMINES = "examine"

#: The most tasks that Ray lists.
_MOST_TASKS = 10_000


def _lose_node_preparing(stage: Stage) -> Outcome:
    """Lose one of two nodes while photos are prepared."""
    output = stage.folder / "disturbed-shards"
    with stage.nodes(1, 1) as nodes:
        job = stage.prepare(nodes, stage.many, output)
        job.wait_for(lambda: job.progress >= 30, "progress")
        before, began = job.progress, time.monotonic()
        nodes.kill_last()
        job.wait_for(lambda: job.progress > before, "progress after the fault")
        back_after = time.monotonic() - began
        ends_well = job.end() == 0
        tasks = list_tasks(address=nodes.dashboard, limit=_MOST_TASKS)
    examined = [task for task in tasks if _EXAMINES in task.name]
    again = CHUNK * sum(task.attempt_number > 0 for task in examined)
    same = digest(output) == digest(stage.undisturbed_shards)
    checks = {"ends well": ends_well and bool(examined), "shards as undisturbed, byte for byte": same}
    return Outcome(checks, back_after, again, "photos")


#: Number of trials of a search, and how often each is judged.
_TRIALS, _JUDGEMENTS = 3, 3


def _lose_node_tuning(stage: Stage) -> Outcome:
    """Lose one of two nodes, and with it a trial, during a search."""
    length, name = stage.length, "search"
    search = ["--trials", str(_TRIALS), "--trial-kimg", kimg(length.trial), "--judgements", str(_JUDGEMENTS)]
    cadence = ["--quality-samples", "16", "--log-every", kimg(length.log), "--scheduler", "none"]
    arguments = ["--name", name, "--data", str(stage.shards), "--label", "cat", *search, *cadence, *stage.networks()]
    with stage.nodes(1, 1) as nodes:
        job = stage.job(name, nodes, ["tune.py", *arguments])
        job.wait_for(lambda: sum(trial.seen() > 0 for trial in stage.trials(name)) == 2, "trials at work")
        trials = [trial for trial in stage.trials(name) if trial.seen()]
        before, saved = [trial.seen() for trial in trials], [trial.saved() for trial in trials]
        began = time.monotonic()
        nodes.kill_last()
        job.wait_for(lambda: all(map(_is_further, trials, before)), "progress of both trials after the fault")
        back_after = time.monotonic() - began
        ends_well = job.end() == 0
    search_run = WatchedRun(stage, name)
    return Outcome(
        checks={
            "ends well": ends_well and search_run.statuses() == ["FINISHED"],
            f"{_TRIALS} trials, each finished, none twice": search_run.child_statuses() == ["FINISHED"] * _TRIALS,
            "their metrics without gaps or doubles": all(has_each_once(stage, trial) for trial in stage.trials(name)),
            f"each judged {_JUDGEMENTS} times": all(_judged(stage, trial) for trial in stage.trials(name)),
        },
        back_after=back_after,
        again=sum(max(0, seen - kept) for seen, kept in zip(before, saved, strict=True)),
        unit="images at most",  # of both trials, only one of which may have been hit
    )


def _is_further(run: WatchedRun, images: int) -> bool:
    return run.seen() > images


def _judged(stage: Stage, trial: WatchedRun) -> bool:
    """Whether a trial has KID and its standard error once for each judgement that was due."""
    every = stage.length.trial // _JUDGEMENTS * BATCH
    due = list(range(every, stage.length.trial * BATCH + 1, every))
    found = trial.steps("kid")
    return len(found) == 2 and all(sorted(steps) == due for steps in found.values())


_COMPARED: tuple[Baseline, ...] = ("faces", "training")

DRILLS: dict[str, Drill] = {
    "worker": Drill("SIGKILL to one of two training workers", kill_worker, _COMPARED),
    "controller": Drill("SIGKILL to Ray Train's controller", kill_controller, _COMPARED),
    "node": Drill(
        "one of two nodes is killed during a training on more photos than its store takes, and another joins", lose_node
    ),
    "four": Drill("the node without the head is killed, with two of four workers, and another joins", lose_half),
    "notice": Drill("one of two nodes is taken away after a notice", take_node),
    "submitted": Drill(
        "`ray job stop` stops a submitted training, which is submitted again", stop_submitted, _COMPARED
    ),
    "reading": Drill(
        "one of two nodes is killed while workers with all cores read more photos than its store takes",
        lose_node_reading,
        (),
    ),
    "prepare": Drill("one of two nodes is killed while photos are prepared", _lose_node_preparing, ("photos",)),
    "tune": Drill("one of two nodes is killed during a search", _lose_node_tuning),
    "serve": Drill("one of two serving nodes is killed, and another joins, which is drained", lose_serving_node, ()),
    "mlflow": Drill("MLflow's server is away for a while", lose_mlflow),
    "storage": Drill("the disk with the storage fills up, and gets room again", fill_storage, _COMPARED),
}
