"""Drills of what a training writes to: MLflow's server is away for a while, or the disk is full."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from raygan.benchmarks.clients import HOST, Request
from raygan.benchmarks.faults.harness import BATCH, Stage, kimg
from raygan.benchmarks.faults.outcome import Outcome
from raygan.benchmarks.faults.training import WORKER, as_undisturbed, at_work, resume, whole_records
from raygan.benchmarks.faults.watched import WatchedRun
from raygan.benchmarks.processes import find_processes
from raygan.benchmarks.servers import free_port, running


def lose_mlflow(stage: Stage) -> Outcome:
    """Take MLflow's server away for a while during a training."""
    storage = stage.folder / "with-server"
    storage.mkdir()
    port = free_port()
    uri = f"http://{HOST}:{port}"
    with stage.nodes(2) as nodes:
        with _mlflow(storage, port):
            more = ["--num-workers", "2", "--kimg", kimg(stage.length.long), "--tracking-uri", uri]
            job = stage.train(nodes, "no-mlflow", *more, storage=storage)
            run = WatchedRun(stage, "no-mlflow", storage, uri)
            at_work(stage, job, run)
        before, workers = run.seen(), find_processes(WORKER)
        time.sleep(stage.length.away_s)
        went_on, same = run.seen() - before, find_processes(WORKER) == workers
        with _mlflow(storage, port):
            ends_well = job.end() == 0
            checks = {
                "went on meanwhile": went_on >= stage.length.log * BATCH and same,
                "told the user once": job.output.count("MLflow does not accept records") == 1,
                "ends well": ends_well,
                **whole_records(stage, run),
            }
    return Outcome(
        checks, again=0 if same else None, notes=[f"{went_on:,} images trained in the {stage.length.away_s:.0f} s"]
    )


def _mlflow(folder: Path, port: int) -> AbstractContextManager[float]:
    """MLflow's server for the length of a `with` block."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return running("MLflow's server", [*command, *store], port, Request("/health"))


def fill_storage(stage: Stage) -> Outcome:
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
        at_work(stage, job, run)
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
            **as_undisturbed(stage, run),
        }
    return outcome
