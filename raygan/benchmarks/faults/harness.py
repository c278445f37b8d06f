"""The scene of the drills: Ray nodes on this machine, jobs as users start them, and what these leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from safetensors.torch import load_file

from raygan import tracking
from raygan.benchmarks.prepare import repeat
from raygan.data import synthetic
from raygan.errors import RayganError
from raygan.runtime.settings import StorageSettings

T = TypeVar("T")

#: What is done undisturbed before the drills.
Rehearsal = Literal["faces", "photos", "training"]

_RAY = [sys.executable, "-m", "ray.scripts.scripts"]

#: Seconds that anything may take to happen.
_PATIENCE = 240.0

#: Images in a batch of all trainings.
BATCH = 16

#: Photos that a task of `prepare` reads.
CHUNK = 128


@dataclass(frozen=True)
class Length:
    """How long the jobs of the drills are, in batches.

    total: of a training. before: what it has done when it is disturbed, some checkpoints; enough must be left to see it
    come back. long: of one that goes on long enough for nodes and servers to come back. trial: of each trial of a
    search. faces: drawn for each label, and repeated: how often `prepare` reads each. away_s: that MLflow's server is
    away.
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


SHORT = Length(total=600, log=10, checkpoint=40, before=80, long=1000, trial=150, faces=150, repeated=10, away_s=10.0)


class Nodes:
    """Ray nodes, each with processes of its own.

    checkout: the folder that is submitted. cores: of the head, and of each further node.
    """

    def __init__(self, checkout: Path, *cores: int):
        self._checkout = checkout
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], "include_dashboard": True})
        self._others: list[Node] = []
        self._added = 0
        for number in cores[1:]:
            self.add(number)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cores: int) -> None:
        """Another node, with an address of its own: jobs must not take it for the machine that they run on."""
        self._added += 1
        self._others.append(self._cluster.add_node(num_cpus=cores, node_ip_address=f"127.0.0.{1 + self._added}"))

    def kill_last(self) -> str:
        """SIGKILL to all processes of the node that came last; its id."""
        node = self._others.pop()
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        # All at once, as when a machine is gone. Ray's utility leaves the workers to find out for themselves.
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def places_of(self, kind: str) -> list[str]:
        """The nodes' ids of the living actors of a class."""
        wanted = [("class_name", "=", kind), ("state", "=", "ALIVE")]
        return sorted(str(actor.node_id) for actor in list_actors(address=self.dashboard, filters=wanted))

    def warn_last(self, seconds: int) -> None:
        """Tell Ray that the node that came last will be taken away."""
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
        node = ["drain-node", "--address", self.address, "--node-id", self._others[-1].node_id]
        self._ray(*node, *why, "--deadline-remaining-seconds", str(seconds))

    def submission(self, name: str, command: list[str]) -> list[str]:
        """Ray's command that hands a command to the cluster and waits for its end."""
        where = ["--address", self.dashboard, "--working-dir", str(self._checkout)]
        return [*_RAY, "job", "submit", *where, "--submission-id", name, "--", *command]

    def stop_submitted(self, name: str) -> None:
        """Have Ray stop a job that was handed to it."""
        self._ray("job", "stop", "--address", self.dashboard, name)

    @property
    def dashboard(self) -> str:
        """The address that jobs are submitted to."""
        return f"http://{self._cluster.webui_url}"

    def _ray(self, *arguments: str) -> None:
        done = subprocess.run([*_RAY, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RayganError(f"ray {arguments[0]} failed: {' / '.join(done.stderr.strip().splitlines()[-2:])}")

    def stop(self) -> None:
        self._cluster.shutdown()


def processes(title: str) -> list[psutil.Process]:
    """Processes of our nodes whose title begins so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(title):
                found.append(process)
    return found


class Job:
    """A job, in a process of its own; its output goes to a file."""

    def __init__(self, stage: Stage, name: str, command: list[str], address: str):
        self.name = name
        self._log = stage.folder / f"{name}-{time.time_ns()}.log"
        environment = {**os.environ, "RAY_ADDRESS": address}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=stage.checkout)

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def progress(self) -> int:
        """The last percentage of a progress bar."""
        found = re.findall(r"(\d+)%\|", self.said)
        return int(found[-1]) if found else 0

    @property
    def shown(self) -> int:
        """Images that a training's progress bar was at, to three digits: it is ahead of what is written down."""
        found = re.findall(r"training:.*?\|\s*([\d.]+)(k?)/", self.said)
        return round(max((float(number) * (1000 if unit else 1) for number, unit in found), default=0))

    def kill(self) -> None:
        """End it, if it hasn't ended."""
        self._process.kill()
        self._process.wait()

    def wait_for(self, happened: Callable[[], T | None], what: str) -> T:
        """Wait until something is there. Raises RayganError if the job ends before, or it takes too long."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            ended = self._process.poll() is not None
            found = happened()
            if found:
                return found
            if ended or time.monotonic() > deadline:
                raise RayganError(f"{self.name}: no {what}; it said: {' / '.join(self.said.splitlines()[-2:])}")
            time.sleep(0.1)

    def end(self) -> int:
        """Wait for the job's end; its exit status. Raises RayganError if it takes too long."""
        try:
            status = self._process.wait(_PATIENCE)
            if status:
                print(f"{self.name} ended with {status}: {' / '.join(self.said.splitlines()[-3:])}", file=sys.stderr)
            return status
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise RayganError(f"{self.name} did not end: {' / '.join(self.said.splitlines()[-2:])}") from None


class Stage:
    """Folders that all drills share, faces, shards, and what an undisturbed job makes of them.

    folder: for all that. checkout: where jobs/ is.
    """

    def __init__(self, folder: Path, checkout: Path, length: Length):
        self.folder, self.checkout, self.length = folder, checkout, length
        self._jobs: list[Job] = []
        self.faces, self.many = folder / "faces", folder / "many"
        self.shards, self.undisturbed_shards = folder / "shards", folder / "undisturbed-shards"
        self.storage = folder / "storage"

    def rehearse(self, rehearsals: Collection[Rehearsal]) -> None:
        """What the drills want: "faces" prepared, which "training" takes, and many "photos" that look alike."""
        if not rehearsals:
            return
        length = self.length
        synthetic.draw_folder(self.faces, length.faces)
        with self.nodes(2) as nodes:
            if "faces" in rehearsals:
                self.undisturbed(self.prepare(nodes, self.faces, self.shards))
            if "photos" in rehearsals:
                repeat([str(self.faces)], str(self.many), length.repeated * len(synthetic.LABELS) * length.faces)
                self.undisturbed(self.prepare(nodes, self.many, self.undisturbed_shards))
            if "training" in rehearsals:
                self.undisturbed(self.train(nodes, "undisturbed", "--num-workers", "2"))

    def undisturbed(self, job: Job) -> None:
        """Wait for a job that nothing happens to. Raises RayganError if it fails."""
        if job.end():
            raise RayganError(f"{job.name} failed undisturbed: {' / '.join(job.said.splitlines()[-2:])}")

    @contextmanager
    def nodes(self, *cores: int) -> Iterator[Nodes]:
        """Nodes for the length of a `with` block, which ends the jobs that it leaves."""
        nodes = Nodes(self.checkout, *cores)
        try:
            yield nodes
        finally:
            for job in self._jobs:
                job.kill()
            self._jobs.clear()
            nodes.stop()

    def prepare(self, nodes: Nodes, photos: Path, output: Path) -> Job:
        """Prepare photos of which many are the same."""
        arguments = ["--input", str(photos), "--output", str(output), "--image-size", "32"]
        filters = ["--skip", "duplicate", "near_duplicate", "outlier", "--chunk-images", str(CHUNK)]
        return self.job("prepare", nodes, ["prepare.py", *arguments, *filters])

    def train(self, nodes: Nodes, name: str, *more: str, storage: Path | None = None) -> Job:
        """The training of all drills, under a name."""
        return self.job(name, nodes, ["train.py", "--name", name, *self.training(), *more], storage)

    def submit(self, nodes: Nodes, submission: str, name: str, *more: str) -> Job:
        """The same training, handed to the cluster as `ray job submit` does it."""
        command = ["python", "jobs/train.py", "--name", name, *self.training(), *more, "--storage", str(self.storage)]
        return self._started(submission, nodes.submission(submission, command), nodes)

    def training(self) -> list[str]:
        """Arguments of a short training with one core for each worker."""
        batches = self.length
        length = ["--kimg", kimg(batches.total), "--snapshot-every", "1000", "--quality-every", "0"]
        cadence = ["--log-every", kimg(batches.log), "--checkpoint-every", kimg(batches.checkpoint)]
        return ["--data", str(self.shards), "--label", "cat", *self.shape(), "--no-promote", *length, *cadence]

    def shape(self) -> list[str]:
        """Arguments of small networks."""
        return ["--preset", "quick", "--image-size", "32", "--width", "8", "--batch-size", str(BATCH)]

    def job(self, name: str, nodes: Nodes, arguments: list[str], storage: Path | None = None) -> Job:
        """A file of jobs/ with its arguments."""
        command = [sys.executable, str(self.checkout / "jobs" / arguments[0]), *arguments[1:]]
        return self._started(name, [*command, "--storage", str(storage or self.storage)], nodes)

    def trials(self, search: str) -> list[Watched]:
        """The trainings of a search, as far as there are any."""
        return [Watched(self, folder.name) for folder in sorted((self.storage / "runs").glob(f"{search}.*"))]

    def _started(self, name: str, command: list[str], nodes: Nodes) -> Job:
        job = Job(self, name, command, nodes.address)
        self._jobs.append(job)
        return job


def kimg(batches: int) -> str:
    """So many batches in thousands of images, as commands take them."""
    return f"{batches * BATCH / 1000:g}"


class Watched:
    """A training's run as it stands in storage and in MLflow."""

    def __init__(self, stage: Stage, name: str, storage: Path | None = None, tracking_uri: str | None = None):
        self.name, self._storage = name, storage or stage.storage
        self.folder = self._storage / "runs" / name
        self._tracking_uri = tracking_uri

    def seen(self) -> int:
        """Images that the last of the written metrics are about."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return max((int(json.loads(line)["images"]) for line in lines), default=0)

    def saved(self) -> int:
        """Images that the latest whole checkpoint has seen."""
        return max(map(_images_of, self.folder.glob("checkpoint_*/generator.json")), default=0)

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of the latest checkpoint."""
        latest = max(self.folder.glob("checkpoint_*/training.safetensors"))
        return load_file(latest)

    def runs(self) -> list[Run]:
        """MLflow's runs of this name."""
        return self._search(f"attributes.run_name = '{self.name}'")

    def children(self, parent: Run) -> list[Run]:
        """MLflow's runs below another."""
        return self._search(f"tags.mlflow.parentRunId = '{parent.info.run_id}'")

    def steps(self, beginning: str) -> dict[str, list[int]]:
        """Images at which MLflow has each metric whose name begins so, as often as it has it."""
        client, found = self._client(), dict[str, list[int]]()
        for run in self.runs():
            for name in run.data.metrics:
                if name.startswith(beginning):
                    history = client.get_metric_history(run.info.run_id, name)
                    found.setdefault(name, []).extend(entry.step for entry in history)
        return found

    def _search(self, query: str) -> list[Run]:
        client = self._client()
        experiment = client.get_experiment_by_name("raygan")
        return list(client.search_runs([experiment.experiment_id], query))

    def _client(self) -> MlflowClient:
        return tracking.connect(StorageSettings(storage=str(self._storage), tracking_uri=self._tracking_uri))


def _images_of(description: Path) -> int:
    """Images that a checkpoint has seen; 0 while it is being written or taken away."""
    try:
        kimg: float = json.loads(description.read_text(encoding="utf-8"))["about"]["kimg"]
    except (OSError, ValueError):
        return 0
    return round(1000 * kimg)


def digest(folder: Path) -> str:
    """Of the bytes of all shards in a folder and their names."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
