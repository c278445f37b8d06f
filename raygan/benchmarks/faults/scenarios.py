"""The drills: what breaks, when, and what must come out nevertheless."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from ray.util.state import list_tasks

from raygan.benchmarks.faults.harness import BATCH, CHUNK, Baseline, Job, Nodes, Stage, WatchedRun, digest, kimg
from raygan.benchmarks.faults.outcome import Drill, Outcome
from raygan.benchmarks.faults.reading import lose_node_reading
from raygan.benchmarks.faults.serving import lose_serving_node
from raygan.benchmarks.processes import find_processes
from raygan.benchmarks.servers import free_port
from raygan.errors import RayganError

_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"

#: Ray's name of the task that examines photos.
_EXAMINES = "examine"

#: The most tasks that Ray lists.
_MOST_TASKS = 10_000


def _kill_worker(stage: Stage) -> Outcome:
    return _disturbed(stage, "worker", lambda: find_processes(_WORKER)[-1].kill())


def _kill_controller(stage: Stage) -> Outcome:
    return _disturbed(stage, "controller", lambda: find_processes(_CONTROLLER)[0].kill())


def _disturbed(stage: Stage, name: str, fault: Callable[[], object]) -> Outcome:
    """Break a training with a fault that kills its processes but not its nodes."""
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, name, "--num-workers", "2"), WatchedRun(stage, name)
        _at_work(stage, job, run)
        outcome = break_training(job, run, fault)
        outcome.checks |= {"ends well": job.end() == 0, **_as_undisturbed(stage, run)}
    return outcome


def _lose_node(stage: Stage) -> Outcome:
    """Lose a node, so that the training goes on with one worker; add one, so that it has two again."""
    with stage.nodes(1, 1) as nodes:
        more = ["--num-workers", "1:2", "--kimg", kimg(stage.length.long)]
        job, run = stage.train(nodes, "node", *more), WatchedRun(stage, "node")
        _at_work(stage, job, run)
        two = len(find_processes(_WORKER)) == 2
        outcome = break_training(job, run, nodes.kill_last)
        one = len(find_processes(_WORKER)) == 1
        nodes.add(1)
        came = time.monotonic()
        grown = job.wait_for(lambda: len(find_processes(_WORKER)) == 2, "growth")
        workers_after, before = time.monotonic() - came, max(run.seen(), job.images_shown)
        job.wait_for(lambda: run.seen() > before, "progress after the growth")
        outcome.notes = [
            f"two workers again {workers_after:.1f} s after a node joined, and new work after "
            f"{time.monotonic() - came:.1f} s"
        ]
        outcome.checks = {"two workers, then one": two and one, "two again": grown, "ends well": job.end() == 0}
        outcome.checks |= _whole_records(stage, run)
    return outcome


def _lose_half(stage: Stage) -> Outcome:
    """Lose the node without the head, with two of four workers on it, and add another at once."""
    four = ["--num-workers", "4"]
    with stage.nodes(2, 2) as nodes:
        stage.train(nodes, "undisturbed-four", *four).end_undisturbed()
        job, run = stage.train(nodes, "four", *four), WatchedRun(stage, "four")
        _at_work(stage, job, run)
        before = _workers_of_nodes(nodes)

        def replace() -> None:
            nodes.kill_last()
            nodes.add(2)

        outcome = break_training(job, run, replace)
        after = _workers_of_nodes(nodes)
        outcome.checks = {
            "two workers on each node, before and after": before == [2, 2] == after,
            "ends well": job.end() == 0,
            **_as_undisturbed(stage, run, "undisturbed-four"),
        }
    return outcome


def _workers_of_nodes(nodes: Nodes) -> list[int]:
    """Number of workers on each node that has any."""
    return sorted(Counter(nodes.places_of("RayTrainWorker")).values())


def _take_node(stage: Stage) -> Outcome:
    """Announce that a node will be taken away, then take it; what was trained until then must be saved."""
    with stage.nodes(1, 1) as nodes:
        # No regular checkpoint before the end.
        more = ["--num-workers", "1:2", "--checkpoint-every", "1000"]
        job, run = stage.train(nodes, "notice", *more), WatchedRun(stage, "notice")
        _at_work(stage, job, run)
        nodes.warn_last(30)
        saved = job.wait_for(run.saved, "checkpoint after the notice")
        outcome = break_training(job, run, nodes.kill_last)
        outcome.checks = {
            "saved on notice": saved > stage.length.before * BATCH,
            "told the user": "about to be taken away" in job.output,
            "ends well": job.end() == 0,
            **_whole_records(stage, run, most_extra=2),
        }
    return outcome


def _stop_submitted(stage: Stage) -> Outcome:
    """Have Ray stop a submitted training, and submit it again."""
    with stage.nodes(2) as nodes:
        job, run = stage.submit(nodes, "first", "submitted", "--num-workers", "2"), WatchedRun(stage, "submitted")
        _at_work(stage, job, run)
        nodes.stop_submitted("first")
        job.end()
        checks = {
            "stopped, with its run closed as killed": run.statuses() == ["KILLED"],
            "left a checkpoint": run.saved() > 0,
        }
        outcome, again = resume(run, job, lambda: stage.submit(nodes, "second", "submitted", "--num-workers", "2"))
        checks["the same command ends well"] = again.end() == 0
        outcome.checks = {**checks, **_as_undisturbed(stage, run)}
    return outcome


def _at_work(stage: Stage, job: Job, run: WatchedRun) -> None:
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


def _as_undisturbed(stage: Stage, run: WatchedRun, other: str = "undisturbed") -> dict[str, bool]:
    """Checks of a training that must end exactly like the undisturbed one."""
    wanted, weights = WatchedRun(stage, other).weights(), run.weights()
    same = wanted.keys() == weights.keys() and all(torch.equal(wanted[name], weights[name]) for name in wanted)
    return {"weights as undisturbed, to the last bit": same, **_whole_records(stage, run)}


def _whole_records(stage: Stage, run: WatchedRun, most_extra: int = 0) -> dict[str, bool]:
    """Check that MLflow has one finished run with every metric once. For `most_extra` see `is_whole`."""
    return {
        "one run in MLflow, finished": run.statuses() == ["FINISHED"],
        "metrics without gaps or doubles": is_whole(stage, run, most_extra),
    }


def is_whole(stage: Stage, run: WatchedRun, most_extra: int = 0) -> bool:
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
            "their metrics without gaps or doubles": all(is_whole(stage, trial) for trial in stage.trials(name)),
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


def _lose_mlflow(stage: Stage) -> Outcome:
    """Take MLflow's server away for a while during a training."""
    storage = stage.folder / "with-server"
    storage.mkdir()
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with stage.nodes(2) as nodes:
        with _mlflow(storage, port):
            more = ["--num-workers", "2", "--kimg", kimg(stage.length.long), "--tracking-uri", uri]
            job = stage.train(nodes, "no-mlflow", *more, storage=storage)
            run = WatchedRun(stage, "no-mlflow", storage, uri)
            _at_work(stage, job, run)
        before, workers = run.seen(), find_processes(_WORKER)
        time.sleep(stage.length.away_s)
        went_on, same = run.seen() - before, find_processes(_WORKER) == workers
        with _mlflow(storage, port):
            ends_well = job.end() == 0
            checks = {
                "went on meanwhile": went_on >= stage.length.log * BATCH and same,
                "told the user once": job.output.count("MLflow does not accept records") == 1,
                "ends well": ends_well,
                **_whole_records(stage, run),
            }
    return Outcome(
        checks, again=0 if same else None, notes=[f"{went_on:,} images trained in the {stage.length.away_s:.0f} s"]
    )


@contextmanager
def _mlflow(folder: Path, port: int) -> Iterator[None]:
    """MLflow's server for the length of a `with` block, whose end kills it."""
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [*command, *store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RayganError("MLflow's server did not start")
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fill_storage(stage: Stage) -> Outcome:
    """Fill the disk with the storage during a training, make room, and resume."""
    disk = stage.folder / "small-disk"
    disk.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    tmpfs = ["-t", "tmpfs", "-o", "size=300m", "none", str(disk)]
    if not (mount and umount) or subprocess.run([mount, *tmpfs], capture_output=True).returncode:
        return Outcome(left_out="only root can mount a small disk")
    try:
        return _full(stage, disk)
    finally:
        subprocess.run([umount, "--lazy", str(disk)], check=False)


def _full(stage: Stage, disk: Path) -> Outcome:
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, "full", "--num-workers", "2", storage=disk), WatchedRun(stage, "full", disk)
        _at_work(stage, job, run)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        stopped = job.end() != 0
        lines = [line for line in job.output.splitlines() if line.startswith("error: ")]
        ballast.unlink()
        outcome, again = resume(run, job, lambda: stage.train(nodes, "full", "--num-workers", "2", storage=disk))
        outcome.checks = {
            "stopped with one line that says why": stopped and len(lines) == 1 and "Traceback" not in job.output,
            "the same command ends well": again.end() == 0,
            **_as_undisturbed(stage, run),
        }
    return outcome


_COMPARED: tuple[Baseline, ...] = ("faces", "training")

DRILLS: dict[str, Drill] = {
    "worker": Drill("SIGKILL to one of two training workers", _kill_worker, _COMPARED),
    "controller": Drill("SIGKILL to Ray Train's controller", _kill_controller, _COMPARED),
    "node": Drill("one of two nodes is killed during a training, and another joins", _lose_node),
    "four": Drill("the node without the head is killed, with two of four workers, and another joins", _lose_half),
    "notice": Drill("one of two nodes is taken away after a notice", _take_node),
    "submitted": Drill(
        "`ray job stop` stops a submitted training, which is submitted again", _stop_submitted, _COMPARED
    ),
    "reading": Drill(
        "one of two nodes is killed while workers with all cores read more photos than its store takes",
        lose_node_reading,
        (),
    ),
    "prepare": Drill("one of two nodes is killed while photos are prepared", _lose_node_preparing, ("photos",)),
    "tune": Drill("one of two nodes is killed during a search", _lose_node_tuning),
    "serve": Drill("one of two serving nodes is killed, and another joins", lose_serving_node, ()),
    "mlflow": Drill("MLflow's server is away for a while", _lose_mlflow),
    "storage": Drill("the disk with the storage fills up, and gets room again", _fill_storage, _COMPARED),
}
