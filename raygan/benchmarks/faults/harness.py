"""What all drills share: folders, faces, and jobs started as users start them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from raygan.benchmarks.faults.nodes import Nodes
from raygan.benchmarks.faults.watched import WatchedRun
from raygan.benchmarks.prepare import repeat
from raygan.data import synthetic
from raygan.errors import RayganError

T = TypeVar("T")

#: What runs undisturbed before the drills.
Baseline = Literal["faces", "photos", "training"]

#: Seconds within which anything must happen.
_PATIENCE = 600.0

#: Images in a batch of every training.
BATCH = 16

#: Photos that one task of `prepare` reads.
CHUNK = 128


@dataclass(frozen=True)
class Length:
    """How long the jobs of the drills are, in batches unless stated.

    Attributes:
        total: length of a training.
        log: batches between two metrics.
        checkpoint: batches between two checkpoints.
        before: batches done before the fault: some checkpoints, with enough left to see the training come back.
        long: length of a training during which nodes and servers come back.
        trial: length of each trial of a search.
        faces: number of faces drawn per label.
        repeated: how often `prepare` reads each face.
        away_s: seconds that MLflow's server is away.
    """

    total: int = 1000
    log: int = 25
    checkpoint: int = 100
    before: int = 200
    long: int = 3000
    trial: int = 300
    faces: int = 300
    repeated: int = 15
    away_s: float = 60.0


SHORT = Length(total=600, log=10, checkpoint=40, before=80, long=1000, trial=150, faces=150, repeated=5, away_s=10.0)


class Job:
    """A job in its own process, with its output in a file."""

    def __init__(self, stage: Stage, name: str, command: list[str], address: str):
        self.name = name
        self._log = stage.folder / f"{name}-{time.time_ns()}.log"
        environment = {**os.environ, "RAY_ADDRESS": address, "TQDM_MININTERVAL": "0.1"}  # bars are read here
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=stage.checkout)

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def progress(self) -> int:
        """The latest percentage of a progress bar."""
        found = re.findall(r"(\d+)%\|", self.output)
        return int(found[-1]) if found else 0

    @property
    def images_shown(self) -> int:
        """Images that a training's progress bar shows, to three digits. It is ahead of what is written to disk."""
        return images_in_progress_bar(self.output)

    def kill(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.wait()

    def wait_for(self, happened: Callable[[], T | None], what: str) -> T:
        """Poll until `happened` returns something true, and return that.

        Raises:
            RayganError: the job ended first, or it took too long.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            ended = self._process.poll() is not None
            found = happened()
            if found:
                return found
            if ended or time.monotonic() > deadline:
                raise RayganError(f"{self.name}: no {what}; its last output: {self._last_lines(2)}")
            time.sleep(0.1)

    def end(self) -> int:
        """Wait for the job's end, and return its exit status.

        Raises:
            RayganError: it took too long.
        """
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise RayganError(f"{self.name} did not end: {self._last_lines(2)}") from None
        if status:
            print(f"{self.name} ended with {status}: {self._last_lines(3)}", file=sys.stderr)
        return status

    def end_undisturbed(self) -> None:
        """Wait for the end of an undisturbed job.

        Raises:
            RayganError: the job failed.
        """
        if self.end():
            raise RayganError(f"{self.name} failed undisturbed: {self._last_lines(2)}")

    def _last_lines(self, count: int) -> str:
        return " / ".join(self.output.splitlines()[-count:])


def images_in_progress_bar(output: str) -> int:
    """The most images that a training's progress bar has shown; 0 before it shows any."""
    found = re.findall(r"training:.*?\|\s*([\d.]+)(k?)/", output)
    return round(max((float(number) * (1000 if unit else 1) for number, unit in found), default=0))


class Stage:
    """What all drills share: folders, faces, shards, and what undisturbed jobs make of them."""

    def __init__(self, folder: Path, checkout: Path, length: Length):
        """Name the folders.

        Args:
            folder: where everything is written.
            checkout: the folder that holds jobs/.
            length: how long the jobs are.
        """
        self.folder, self.checkout, self.length = folder, checkout, length
        self._jobs: list[Job] = []
        self.faces, self.many = folder / "faces", folder / "many"
        self.shards, self.undisturbed_shards = folder / "shards", folder / "undisturbed-shards"
        self.storage = folder / "storage"

    def make_baselines(self, baselines: Collection[Baseline]) -> None:
        """Run what the drills build on or compare with.

        Args:
            baselines: "faces" prepares some faces; "training" trains on them; "photos" prepares many, mostly alike.
        """
        if not baselines:
            return
        length = self.length
        synthetic.draw_folder(self.faces, length.faces)
        with self.nodes(2) as nodes:
            if "faces" in baselines:
                self.prepare(nodes, self.faces, self.shards).end_undisturbed()
            if "photos" in baselines:
                repeat([str(self.faces)], str(self.many), length.repeated * len(synthetic.LABELS) * length.faces)
                self.prepare(nodes, self.many, self.undisturbed_shards).end_undisturbed()
            if "training" in baselines:
                self.train(nodes, "undisturbed", "--num-workers", "2").end_undisturbed()

    @contextmanager
    def nodes(self, *cores: int, store: int | None = None, env: Mapping[str, str] | None = None) -> Iterator[Nodes]:
        """Nodes for the length of a `with` block, whose end kills the jobs that still run; see `Nodes`."""
        nodes = Nodes(self.checkout, *cores, store=store, env=env)
        try:
            yield nodes
        finally:
            for job in self._jobs:
                job.kill()
            self._jobs.clear()
            nodes.stop()

    def prepare(self, nodes: Nodes, photos: Path, output: Path) -> Job:
        """Prepare photos, many of which are duplicates."""
        arguments = ["--input", str(photos), "--output", str(output), "--image-size", "32"]
        filters = ["--skip", "duplicate", "near_duplicate", "outlier", "--chunk-images", str(CHUNK)]
        return self.job("prepare", nodes, ["prepare.py", *arguments, *filters])

    def train(self, nodes: Nodes, name: str, *more: str, storage: Path | None = None) -> Job:
        """The training of all drills, with a name and further arguments."""
        return self.job(name, nodes, ["train.py", "--name", name, *self.training(), *more], storage)

    def submit(self, nodes: Nodes, submission: str, name: str, *more: str) -> Job:
        """The same training, submitted to the cluster as `ray job submit` does."""
        command = ["python", "jobs/train.py", "--name", name, *self.training(), *more, "--storage", str(self.storage)]
        return self._started(submission, nodes.submission(submission, command), nodes)

    def training(self) -> list[str]:
        """Arguments of a short training with one core per worker."""
        batches = self.length
        length = ["--kimg", kimg(batches.total), "--snapshot-every", "1000", "--quality-every", "0"]
        cadence = ["--log-every", kimg(batches.log), "--checkpoint-every", kimg(batches.checkpoint)]
        return ["--data", str(self.shards), "--label", "cat", *self.networks(), "--no-promote", *length, *cadence]

    def networks(self) -> list[str]:
        """Arguments of small networks."""
        return ["--preset", "quick", "--image-size", "32", "--width", "8", "--batch-size", str(BATCH)]

    def job(self, name: str, nodes: Nodes, arguments: list[str], storage: Path | None = None) -> Job:
        """Start a file of jobs/ with its arguments."""
        command = [sys.executable, str(self.checkout / "jobs" / arguments[0]), *arguments[1:]]
        return self._started(name, [*command, "--storage", str(storage or self.storage)], nodes)

    def trials(self, search: str) -> list[WatchedRun]:
        """The trainings that a search has started so far."""
        return [WatchedRun(self, folder.name) for folder in sorted((self.storage / "runs").glob(f"{search}.*"))]

    def _started(self, name: str, command: list[str], nodes: Nodes) -> Job:
        job = Job(self, name, command, nodes.address)
        self._jobs.append(job)
        return job


def kimg(batches: int) -> str:
    """A number of batches in thousands of images, as flags take it."""
    return f"{batches * BATCH / 1000:g}"


def digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of all shards in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
