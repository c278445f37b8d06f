"""The drills: what is broken, when, and what must come out all the same."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from raygan.benchmarks.serve import free_port
from raygan.drills.stage import (
    BATCH,
    CHECKPOINT_BATCHES,
    LOG_BATCHES,
    Job,
    Stage,
    Watched,
    digest,
    processes,
)
from raygan.errors import RayganError

_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"

#: Images that a training has seen before it is disturbed: some checkpoints, and enough left to see it come back.
_BEFORE = 2 * CHECKPOINT_BATCHES * BATCH

#: Length of a training that goes on long enough for nodes and servers to come back: thousands of images.
_LONG = "48"

#: Seconds that MLflow's server is away.
_AWAY_S = 60.0


@dataclass
class Found:
    """What a drill found.

    checks: what must hold, and whether it does. back_after: seconds from the fault to the first work that is new.
    again_kimg: thousands of images that were trained a second time. left_out: why the drill can't be run here.
    """

    checks: dict[str, bool] = field(default_factory=dict)
    back_after: float | None = None
    again_kimg: float | None = None
    left_out: str = ""
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
    return _disturbed(stage, "worker", lambda: processes(_WORKER)[-1].kill())


def _kill_controller(stage: Stage) -> Found:
    return _disturbed(stage, "controller", lambda: processes(_CONTROLLER)[0].kill())


def _disturbed(stage: Stage, name: str, fault: Callable[[], None]) -> Found:
    """A fault that ends a training's processes on a cluster that stays as it is."""
    with stage.nodes(2) as nodes:
        job, run = stage.train(nodes, name, "--num-workers", "2"), Watched(stage, name)
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        found = _hurt(job, run, fault)
        found.checks |= {"ends well": job.end() == 0, **_as_undisturbed(stage, run)}
    return found


def _lose_node(stage: Stage) -> Found:
    """A node is lost and the training goes on with one worker; a node comes and it has two again."""
    with stage.nodes(1, 1) as nodes:
        job, run = stage.train(nodes, "node", "--num-workers", "1:2", "--kimg", _LONG), Watched(stage, "node")
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        two = len(processes(_WORKER)) == 2
        found = _hurt(job, run, nodes.kill_last)
        one = len(processes(_WORKER)) == 1
        nodes.add(1)
        grown = job.wait_for(lambda: len(processes(_WORKER)) == 2, "growth")
        found.checks = {"two workers, then one": two and one, "two again": grown, "ends well": job.end() == 0}
        found.checks |= _whole_records(run)
    return found


def _take_node(stage: Stage) -> Found:
    """A node is announced to be taken away, and is; what was trained until then must be saved."""
    with stage.nodes(1, 1) as nodes:
        # No checkpoint comes of itself before the end.
        more = ["--num-workers", "1:2", "--checkpoint-every", "1000"]
        job, run = stage.train(nodes, "notice", *more), Watched(stage, "notice")
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        nodes.warn_last(30)
        saved = job.wait_for(run.saved, "checkpoint after the notice")
        found = _hurt(job, run, nodes.kill_last)
        found.checks = {"saved on notice": saved > _BEFORE, "said so": "about to be taken away" in job.said}
        found.checks |= {"ends well": job.end() == 0, **_whole_records(run, most_extra=2)}
    return found


def _stop_submitted(stage: Stage) -> Found:
    """A submitted training is stopped by Ray, and submitted again."""
    with stage.nodes(2) as nodes:
        job, run = stage.submit(nodes, "first", "submitted", "--num-workers", "2"), Watched(stage, "submitted")
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        nodes.stop_submitted("first")
        job.end()
        checks = {
            "stopped, its run closed as killed": [each.info.status for each in run.runs()] == ["KILLED"],
            "a checkpoint is left": run.saved() > 0,
        }
        again = stage.submit(nodes, "second", "submitted", "--num-workers", "2")
        checks["the same command ends well"] = again.end() == 0
        return Found(checks={**checks, **_as_undisturbed(stage, run)})


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


def _whole_records(run: Watched, most_extra: int = 0) -> dict[str, bool]:
    """MLflow has one finished run with every metric once. most_extra: metrics out of turn, from saves on notice."""
    runs, steps = run.runs(), run.steps()
    cadence = LOG_BATCHES * BATCH
    last = max(steps, default=0)
    due = set(range(cadence, last + 1, cadence)) | {last}
    return {
        "one run in MLflow, finished": [each.info.status for each in runs] == ["FINISHED"],
        "metrics without gaps or doubles": due <= set(steps) and len(steps) == len(set(steps)) <= len(due) + most_extra,
    }


def _lose_node_preparing(stage: Stage) -> Found:
    output = stage.folder / "disturbed-shards"
    with stage.nodes(1, 1) as nodes:
        job = stage.prepare(nodes, stage.many, output)
        job.wait_for(lambda: job.progress >= 30, "progress")
        nodes.kill_last()
        ends_well = job.end() == 0
    same = digest(output) == digest(stage.undisturbed_shards)
    return Found(checks={"ends well": ends_well, "shards as undisturbed, byte for byte": same})


def _lose_node_tuning(stage: Stage) -> Found:
    length = ["--trials", "3", "--trial-kimg", "1.6", "--judgements", "2", "--quality-samples", "16"]
    shape = ["--preset", "quick", "--image-size", "32", "--width", "8", "--batch-size", str(BATCH)]
    place = ["--data", str(stage.shards), "--label", "cat"]
    with stage.nodes(1, 1) as nodes:
        job = stage.job(
            "search", nodes, ["tune.py", "--name", "search", "--scheduler", "none", *length, *shape, *place]
        )
        job.wait_for(lambda: len(processes(_WORKER)) == 2, "trials")
        nodes.kill_last()
        ends_well = job.end() == 0
    search = Watched(stage, "search")
    (parent,) = search.runs()
    trials = [trial.info.status for trial in search.children(parent)]
    return Found(
        checks={
            "ends well": ends_well and parent.info.status == "FINISHED",
            "three trials, each finished, none twice": trials == ["FINISHED"] * 3,
        }
    )


def _lose_mlflow(stage: Stage) -> Found:
    storage = stage.folder / "with-server"
    storage.mkdir()
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with stage.nodes(2) as nodes:
        with _mlflow(storage, port):
            more = ["--num-workers", "2", "--kimg", _LONG, "--tracking-uri", uri]
            job = stage.train(nodes, "no-mlflow", *more, storage=storage)
            run = Watched(stage, "no-mlflow", storage, uri)
            job.wait_for(lambda: run.seen() > _BEFORE, "progress")
        before = run.seen()
        time.sleep(_AWAY_S)
        went_on = run.seen() - before
        with _mlflow(storage, port):
            ends_well = job.end() == 0
            checks = {
                "goes on meanwhile": went_on > LOG_BATCHES * BATCH,
                "says so once": job.said.count("MLflow does not take records") == 1,
                "ends well": ends_well,
                **_whole_records(run),
            }
    return Found(checks=checks)


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
        job.wait_for(lambda: run.seen() > _BEFORE, "progress")
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
        again = stage.train(nodes, "full", "--num-workers", "2", storage=disk)
        checks = {
            "stops with one line that says why": stopped and len(lines) == 1 and "Traceback" not in job.said,
            "the same command ends well": again.end() == 0,
            **_as_undisturbed(stage, run),
        }
    return Found(checks=checks)


DRILLS: dict[str, Drill] = {
    "worker": Drill("SIGKILL to one of two training workers", _kill_worker),
    "controller": Drill("SIGKILL to Ray Train's controller", _kill_controller),
    "node": Drill("a node of two is killed while training, and another comes", _lose_node),
    "notice": Drill("a node of two is announced to be taken away, and is", _take_node),
    "submitted": Drill("a submitted training is stopped by `ray job stop`, and submitted again", _stop_submitted),
    "prepare": Drill("a node of two is killed while photos are prepared", _lose_node_preparing),
    "tune": Drill("a node of two is killed in a search", _lose_node_tuning),
    "mlflow": Drill(f"MLflow's server is away for {_AWAY_S:.0f} s", _lose_mlflow),
    "storage": Drill("the disk with the storage is full, and has room again", _fill_storage),
}
