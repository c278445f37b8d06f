"""Drills of trainings: a worker, a controller or a node dies, or Ray stops the job; and how the end is compared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch

from raygan.benchmarks.faults.harness import BATCH, Job, Stage, kimg
from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.faults.outcome import Outcome
from raygan.benchmarks.faults.reading import MEMORY, STORE, draw_noise
from raygan.benchmarks.faults.watched import WatchedRun
from raygan.benchmarks.processes import find_processes

#: Titles of Ray Train's processes.
WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def kill_worker(stage: Stage) -> Outcome:
    """Kill one of two workers."""
    return _disturbed(stage, "worker", lambda: find_processes(WORKER)[-1].kill())


def kill_controller(stage: Stage) -> Outcome:
    """Kill Ray Train's controller."""
    return _disturbed(stage, "controller", lambda: find_processes(_CONTROLLER)[0].kill())


def _disturbed(stage: Stage, name: str, fault: Callable[[], object]) -> Outcome:
    """Break a training with a fault that kills its processes but not its nodes."""
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, name, "--num-workers", "2"), WatchedRun(stage, name)
        at_work(stage, job, run)
        outcome = break_training(job, run, fault)
        outcome.checks |= {"ends well": job.end() == 0, **as_undisturbed(stage, run)}
    return outcome


def lose_node(stage: Stage) -> Outcome:
    """Lose a node, so that the training goes on with one worker; add one, so that it has two again.

    The workers hold all cores, and there are more photos than a node's store takes.
    """
    data = draw_noise(stage.folder / "photos-of-a-training", 32)
    with stage.nodes(1, 1, store=STORE) as nodes:
        more = ["--num-workers", "1:2", "--kimg", kimg(stage.length.long)]
        more += ["--data", data.address, "--data-memory", str(MEMORY)]
        job, run = stage.train(nodes, "node", *more), WatchedRun(stage, "node")
        at_work(stage, job, run)
        two = len(find_processes(WORKER)) == 2
        outcome = break_training(job, run, nodes.kill_last)
        one = len(find_processes(WORKER)) == 1
        nodes.add(1)
        came = time.monotonic()
        grown = job.wait_for(lambda: len(find_processes(WORKER)) == 2, "growth")
        workers_after, before = time.monotonic() - came, max(run.seen(), job.images_shown)
        job.wait_for(lambda: run.seen() > before, "progress after the growth")
        outcome.notes = [
            f"two workers again {workers_after:.1f} s after a node joined, and new work after "
            f"{time.monotonic() - came:.1f} s"
        ]
        outcome.checks = {"two workers, then one": two and one, "two again": grown, "ends well": job.end() == 0}
        outcome.checks |= whole_records(stage, run)
    return outcome


def lose_half(stage: Stage) -> Outcome:
    """Lose the node without the head, with two of four workers on it, and add another at once."""
    four = ["--num-workers", "4"]
    with stage.nodes(2, 2) as nodes:
        stage.train(nodes, "undisturbed-four", *four).end_undisturbed()
        job, run = stage.train(nodes, "four", *four), WatchedRun(stage, "four")
        at_work(stage, job, run)
        before = _workers_of_nodes(nodes)

        def replace() -> None:
            nodes.kill_last()
            nodes.add(2)

        outcome = break_training(job, run, replace)
        after = _workers_of_nodes(nodes)
        outcome.checks = {
            "two workers on each node, before and after": before == [2, 2] == after,
            "ends well": job.end() == 0,
            **as_undisturbed(stage, run, "undisturbed-four"),
        }
    return outcome


def _workers_of_nodes(nodes: Nodes) -> list[int]:
    """Number of workers on each node that has any."""
    return sorted(Counter(nodes.places_of("RayTrainWorker")).values())


def take_node(stage: Stage) -> Outcome:
    """Announce that a node will be taken away, then take it; what was trained until then must be saved."""
    with stage.nodes(1, 1) as nodes:
        # No regular checkpoint before the end.
        more = ["--num-workers", "1:2", "--checkpoint-every", "1000"]
        job, run = stage.train(nodes, "notice", *more), WatchedRun(stage, "notice")
        at_work(stage, job, run)
        nodes.warn_last(30)
        saved = job.wait_for(run.saved, "checkpoint after the notice")
        outcome = break_training(job, run, nodes.kill_last)
        outcome.checks = {
            "saved on notice": saved > stage.length.before * BATCH,
            "told the user": "about to be taken away" in job.output,
            "ends well": job.end() == 0,
            **whole_records(stage, run, most_extra=2),
        }
    return outcome


def stop_submitted(stage: Stage) -> Outcome:
    """Have Ray stop a submitted training, and submit it again."""
    with stage.nodes(2) as nodes:
        job, run = stage.submit(nodes, "first", "submitted", "--num-workers", "2"), WatchedRun(stage, "submitted")
        at_work(stage, job, run)
        nodes.stop_submitted("first")
        job.end()
        checks = {
            "stopped, with its run closed as killed": run.statuses() == ["KILLED"],
            "left a checkpoint": run.saved() > 0,
        }
        outcome, again = resume(run, job, lambda: stage.submit(nodes, "second", "submitted", "--num-workers", "2"))
        checks["the same command ends well"] = again.end() == 0
        outcome.checks = {**checks, **as_undisturbed(stage, run)}
    return outcome


def at_work(stage: Stage, job: Job, run: WatchedRun) -> None:
    """Wait until a training has come far enough to be disturbed."""
    job.wait_for(lambda: run.seen() > stage.length.before * BATCH, "progress")


def break_training(job: Job, run: WatchedRun, fault: Callable[[], object]) -> Outcome:
    """Break a running training, and see when it gets further than it was and how much it repeats."""
    before, saved = max(run.seen(), job.images_shown), run.saved()
    began = time.monotonic()
    fault()
    job.wait_for(lambda: run.seen() > before, "progress after the fault")
    return Outcome(back_after=time.monotonic() - began, again=max(0, before - saved))


def resume(run: WatchedRun, ended: Job, command: Callable[[], Job]) -> tuple[Outcome, Job]:
    """Resume a run that has ended, and see when it gets further than it was and how much it repeats."""
    before, saved = max(run.seen(), ended.images_shown), run.saved()
    began = time.monotonic()
    job = command()
    job.wait_for(lambda: run.seen() > before, "progress after the end")
    return Outcome(back_after=time.monotonic() - began, again=max(0, before - saved)), job


def as_undisturbed(stage: Stage, run: WatchedRun, other: str = "undisturbed") -> dict[str, bool]:
    """Checks of a training that must end exactly like the undisturbed one."""
    wanted, weights = WatchedRun(stage, other).weights(), run.weights()
    same = wanted.keys() == weights.keys() and all(torch.equal(wanted[name], weights[name]) for name in wanted)
    return {"weights as undisturbed, to the last bit": same, **whole_records(stage, run)}


def whole_records(stage: Stage, run: WatchedRun, most_extra: int = 0) -> dict[str, bool]:
    """Check that MLflow has one finished run with every metric once. For `most_extra` see `has_each_once`."""
    return {
        "one run in MLflow, finished": run.statuses() == ["FINISHED"],
        "metrics without gaps or doubles": has_each_once(stage, run, most_extra),
    }


def has_each_once(stage: Stage, run: WatchedRun, most_extra: int = 0) -> bool:
    """Whether MLflow has the critic's loss once for each logging step and the end.

    Args:
        stage: tells the cadence.
        run: the training.
        most_extra: how many further steps may have one, since a save on notice logs too.
    """
    steps = run.steps("critic_loss").get("critic_loss", [])
    cadence = stage.length.log * BATCH
    last = run.seen()  # MLflow's own last step would hide a lost end
    due = set(range(cadence, last + 1, cadence)) | {last}
    return due <= set(steps) and len(steps) == len(set(steps)) <= len(due) + most_extra
