"""The drills: what is broken, when, and what must come out all the same."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ray.util.state import list_tasks

from raygan.benchmarks.faults.harness import (
    BATCH,
    CHUNK,
    Job,
    Nodes,
    Rehearsal,
    Stage,
    Watched,
    digest,
    kimg,
    processes,
)
from raygan.benchmarks.faults.outcome import Drill, Found
from raygan.benchmarks.faults.serving import lose_serving_node
from raygan.benchmarks.serve import free_port
from raygan.errors import RayganError

_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"

#: What Ray calls the task that examines photos.
_EXAMINES = "examine"

#: Most tasks that Ray lists.
_MOST_TASKS = 10_000


def _kill_worker(stage: Stage) -> Found:
    return _disturbed(stage, "worker", lambda: processes(_WORKER)[-1].kill())


def _kill_controller(stage: Stage) -> Found:
    return _disturbed(stage, "controller", lambda: processes(_CONTROLLER)[0].kill())


def _disturbed(stage: Stage, name: str, fault: Callable[[], object]) -> Found:
    """A fault that ends a training's processes on a cluster that stays as it is."""
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, name, "--num-workers", "2"), Watched(stage, name)
        _at_work(stage, job, run)
        found = _hurt(job, run, fault)
        found.checks |= {"ends well": job.end() == 0, **_as_undisturbed(stage, run)}
    return found


def _lose_node(stage: Stage) -> Found:
    """A node is lost and the training goes on with one worker; a node comes and it has two again."""
    with stage.nodes(1, 1) as nodes:
        more = ["--num-workers", "1:2", "--kimg", kimg(stage.length.long)]
        job, run = stage.train(nodes, "node", *more), Watched(stage, "node")
        _at_work(stage, job, run)
        two = len(processes(_WORKER)) == 2
        found = _hurt(job, run, nodes.kill_last)
        one = len(processes(_WORKER)) == 1
        nodes.add(1)
        came = time.monotonic()
        grown = job.wait_for(lambda: len(processes(_WORKER)) == 2, "growth")
        workers_after, before = time.monotonic() - came, max(run.seen(), job.shown)
        job.wait_for(lambda: run.seen() > before, "progress after the growth")
        found.notes = [
            f"two workers again {workers_after:.1f} s after a node has come, and new work after "
            f"{time.monotonic() - came:.1f} s"
        ]
        found.checks = {"two workers, then one": two and one, "two again": grown, "ends well": job.end() == 0}
        found.checks |= _whole_records(stage, run)
    return found


def _lose_half(stage: Stage) -> Found:
    """The node without the head is lost, with two of four workers on it, and another comes at once."""
    four = ["--num-workers", "4"]
    with stage.nodes(2, 2) as nodes:
        stage.undisturbed(stage.train(nodes, "undisturbed-four", *four))
        job, run = stage.train(nodes, "four", *four), Watched(stage, "four")
        _at_work(stage, job, run)
        before = _workers_of_nodes(nodes)

        def replace() -> None:
            nodes.kill_last()
            nodes.add(2)

        found = _hurt(job, run, replace)
        after = _workers_of_nodes(nodes)
        found.checks = {
            "two workers on each node, and again": before == [2, 2] == after,
            "ends well": job.end() == 0,
            **_as_undisturbed(stage, run, "undisturbed-four"),
        }
    return found


def _workers_of_nodes(nodes: Nodes) -> list[int]:
    """How many workers run on each node that has any."""
    return sorted(Counter(nodes.places_of("RayTrainWorker")).values())


def _take_node(stage: Stage) -> Found:
    """A node is announced to be taken away, and is; what was trained until then must be saved."""
    with stage.nodes(1, 1) as nodes:
        # No checkpoint comes of itself before the end.
        more = ["--num-workers", "1:2", "--checkpoint-every", "1000"]
        job, run = stage.train(nodes, "notice", *more), Watched(stage, "notice")
        _at_work(stage, job, run)
        nodes.warn_last(30)
        saved = job.wait_for(run.saved, "checkpoint after the notice")
        found = _hurt(job, run, nodes.kill_last)
        found.checks = {
            "saved on notice": saved > stage.length.before * BATCH,
            "said so": "about to be taken away" in job.said,
            "ends well": job.end() == 0,
            **_whole_records(stage, run, most_extra=2),
        }
    return found


def _stop_submitted(stage: Stage) -> Found:
    """A submitted training is stopped by Ray, and submitted again."""
    with stage.nodes(2) as nodes:
        job, run = stage.submit(nodes, "first", "submitted", "--num-workers", "2"), Watched(stage, "submitted")
        _at_work(stage, job, run)
        nodes.stop_submitted("first")
        job.end()
        checks = {
            "stopped, its run closed as killed": [each.info.status for each in run.runs()] == ["KILLED"],
            "a checkpoint is left": run.saved() > 0,
        }
        found, again = _gone_on(run, job, lambda: stage.submit(nodes, "second", "submitted", "--num-workers", "2"))
        checks["the same command ends well"] = again.end() == 0
        found.checks = {**checks, **_as_undisturbed(stage, run)}
    return found


def _at_work(stage: Stage, job: Job, run: Watched) -> None:
    """Wait until a training has come so far that it may be disturbed."""
    job.wait_for(lambda: run.seen() > stage.length.before * BATCH, "progress")


def _hurt(job: Job, run: Watched, fault: Callable[[], object]) -> Found:
    """Do it, and see after how long the training is further than it was, and what it did twice."""
    before, saved = max(run.seen(), job.shown), run.saved()
    began = time.monotonic()
    fault()
    job.wait_for(lambda: run.seen() > before, "progress after the fault")
    return Found(back_after=time.monotonic() - began, again=max(0, before - saved))


def _gone_on(run: Watched, ended: Job, command: Callable[[], Job]) -> tuple[Found, Job]:
    """Go on with a run that has ended; see after how long it is further, and what was done twice."""
    before, saved = max(run.seen(), ended.shown), run.saved()
    began = time.monotonic()
    job = command()
    job.wait_for(lambda: run.seen() > before, "progress after the end")
    return Found(back_after=time.monotonic() - began, again=max(0, before - saved)), job


def _as_undisturbed(stage: Stage, run: Watched, other: str = "undisturbed") -> dict[str, bool]:
    """Checks of a training that had to come to the very end of the undisturbed one."""
    wanted, weights = Watched(stage, other).weights(), run.weights()
    same = wanted.keys() == weights.keys() and all(torch.equal(wanted[name], weights[name]) for name in wanted)
    return {"weights as undisturbed, to the last bit": same, **_whole_records(stage, run)}


def _whole_records(stage: Stage, run: Watched, most_extra: int = 0) -> dict[str, bool]:
    """MLflow has one finished run with every metric once. most_extra: metrics out of turn, from saves on notice."""
    return {
        "one run in MLflow, finished": [each.info.status for each in run.runs()] == ["FINISHED"],
        "metrics without gaps or doubles": _whole(stage, run, most_extra),
    }


def _whole(stage: Stage, run: Watched, most_extra: int = 0) -> bool:
    steps = run.steps("critic_loss").get("critic_loss", [])
    cadence = stage.length.log * BATCH
    last = run.seen()  # not the last that MLflow has, which could have lost the end
    due = set(range(cadence, last + 1, cadence)) | {last}
    return due <= set(steps) and len(steps) == len(set(steps)) <= len(due) + most_extra


def _lose_node_preparing(stage: Stage) -> Found:
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
    return Found(checks, back_after, again, "photos")


#: Of the trials of a search: how many, and how often each is judged.
_TRIALS, _JUDGEMENTS = 3, 3


def _lose_node_tuning(stage: Stage) -> Found:
    length, name = stage.length, "search"
    search = ["--trials", str(_TRIALS), "--trial-kimg", kimg(length.trial), "--judgements", str(_JUDGEMENTS)]
    cadence = ["--quality-samples", "16", "--log-every", kimg(length.log), "--scheduler", "none"]
    arguments = ["--name", name, "--data", str(stage.shards), "--label", "cat", *search, *cadence, *stage.shape()]
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
    (parent,) = Watched(stage, name).runs()
    states = [trial.info.status for trial in Watched(stage, name).children(parent)]
    return Found(
        checks={
            "ends well": ends_well and parent.info.status == "FINISHED",
            f"{_TRIALS} trials, each finished, none twice": states == ["FINISHED"] * _TRIALS,
            "their metrics without gaps or doubles": all(_whole(stage, trial) for trial in stage.trials(name)),
            f"each judged {_JUDGEMENTS} times": all(_judged(stage, trial) for trial in stage.trials(name)),
        },
        back_after=back_after,
        again=sum(max(0, seen - kept) for seen, kept in zip(before, saved, strict=True)),
        unit="images at most",  # of both trials, of which only one may have been hit
    )


def _is_further(run: Watched, images: int) -> bool:
    return run.seen() > images


def _judged(stage: Stage, trial: Watched) -> bool:
    """Whether a trial has its KID, and its error, once for each judgement that was due."""
    every = stage.length.trial // _JUDGEMENTS * BATCH
    due = list(range(every, stage.length.trial * BATCH + 1, every))
    found = trial.steps("kid")
    return len(found) == 2 and all(sorted(steps) == due for steps in found.values())


def _lose_mlflow(stage: Stage) -> Found:
    storage = stage.folder / "with-server"
    storage.mkdir()
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with stage.nodes(2) as nodes:
        with _mlflow(storage, port):
            more = ["--num-workers", "2", "--kimg", kimg(stage.length.long), "--tracking-uri", uri]
            job = stage.train(nodes, "no-mlflow", *more, storage=storage)
            run = Watched(stage, "no-mlflow", storage, uri)
            _at_work(stage, job, run)
        before, workers = run.seen(), processes(_WORKER)
        time.sleep(stage.length.away_s)
        went_on, same = run.seen() - before, processes(_WORKER) == workers
        with _mlflow(storage, port):
            ends_well = job.end() == 0
            checks = {
                "goes on meanwhile": went_on >= stage.length.log * BATCH and same,
                "says so once": job.said.count("MLflow does not take records") == 1,
                "ends well": ends_well,
                **_whole_records(stage, run),
            }
    return Found(
        checks, again=0 if same else None, notes=[f"{went_on:,} images trained in the {stage.length.away_s:.0f} s"]
    )


@contextmanager
def _mlflow(folder: Path, port: int) -> Iterator[None]:
    """MLflow's server for the length of a `with` block."""
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
                raise RayganError("MLflow's server does not start")
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fill_storage(stage: Stage) -> Found:
    disk = stage.folder / "small-disk"
    disk.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    tmpfs = ["-t", "tmpfs", "-o", "size=300m", "none", str(disk)]
    if not (mount and umount) or subprocess.run([mount, *tmpfs], capture_output=True).returncode:
        return Found(left_out="a small disk can be mounted by root only")
    try:
        return _full(stage, disk)
    finally:
        subprocess.run([umount, "--lazy", str(disk)], check=False)


def _full(stage: Stage, disk: Path) -> Found:
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, "full", "--num-workers", "2", storage=disk), Watched(stage, "full", disk)
        _at_work(stage, job, run)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                pass
        stopped = job.end() != 0
        lines = [line for line in job.said.splitlines() if line.startswith("error: ")]
        ballast.unlink()
        found, again = _gone_on(run, job, lambda: stage.train(nodes, "full", "--num-workers", "2", storage=disk))
        found.checks = {
            "stops with one line that says why": stopped and len(lines) == 1 and "Traceback" not in job.said,
            "the same command ends well": again.end() == 0,
            **_as_undisturbed(stage, run),
        }
    return found


_COMPARED: tuple[Rehearsal, ...] = ("faces", "training")

DRILLS: dict[str, Drill] = {
    "worker": Drill("SIGKILL to one of two training workers", _kill_worker, _COMPARED),
    "controller": Drill("SIGKILL to Ray Train's controller", _kill_controller, _COMPARED),
    "node": Drill("a node of two is killed while training, and another comes", _lose_node),
    "four": Drill("the node without the head is killed, with two of four workers, and another comes", _lose_half),
    "notice": Drill("a node of two is announced to be taken away, and is", _take_node),
    "submitted": Drill(
        "a submitted training is stopped by `ray job stop`, and submitted again", _stop_submitted, _COMPARED
    ),
    "prepare": Drill("a node of two is killed while photos are prepared", _lose_node_preparing, ("photos",)),
    "tune": Drill("a node of two is killed in a search", _lose_node_tuning),
    "serve": Drill("a node of two is killed that serves, and another comes", lose_serving_node, ()),
    "mlflow": Drill("MLflow's server is away for a while", _lose_mlflow),
    "storage": Drill("the disk with the storage is full, and has room again", _fill_storage, _COMPARED),
}
