"""The scene of the drills: Ray nodes on this machine, jobs as users start them, and what these leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from ray._private.node import Node
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

import raygan
from raygan import tracking
from raygan.benchmarks.prepare import repeat
from raygan.config import StorageSettings
from raygan.errors import RayganError
from raygan.photos import draw

T = TypeVar("T")

_REPOSITORY = Path(raygan.__file__).parent.parent
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]

#: Seconds that anything may take to happen.
_PATIENCE = 240.0

#: Drawn faces of each label, and how often each is read in the drill of `prepare`.
_FACES, _REPEATED = 300, 15

#: The training of all drills: 16,000 images in batches of 16, a log every 25 batches, a checkpoint every 100.
BATCH, LOG_BATCHES, CHECKPOINT_BATCHES, TOTAL_BATCHES = 16, 25, 100, 1000


class Nodes:
    """Ray nodes, each with processes of its own.

    cores: of the head, and of each further node.
    """

    def __init__(self, *cores: int):
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

    def kill_last(self) -> None:
        """SIGKILL to all processes of the node that came last."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def warn_last(self, seconds: int) -> None:
        """Tell Ray that the node that came last will be taken away."""
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
        node = ["drain-node", "--address", self.address, "--node-id", self._others[-1].node_id]
        self._ray(*node, *why, "--deadline-remaining-seconds", str(seconds))

    def submission(self, name: str, command: list[str]) -> list[str]:
        """Ray's command that hands a command to the cluster and waits for its end."""
        where = ["--address", self._dashboard, "--working-dir", str(_REPOSITORY)]
        return [*_RAY, "job", "submit", *where, "--submission-id", name, "--", *command]

    def stop_submitted(self, name: str) -> None:
        """Have Ray stop a job that was handed to it."""
        self._ray("job", "stop", "--address", self._dashboard, name)

    @property
    def _dashboard(self) -> str:
        return f"http://{self._cluster.webui_url}"

    def _ray(self, *arguments: str) -> None:
        done = subprocess.run([*_RAY, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RayganError(f"ray {arguments[0]} failed: {' / '.join(done.stderr.strip().splitlines()[-2:])}")

    def stop(self) -> None:
        self._cluster.shutdown()


def processes(title: str) -> list[psutil.Process]:
    """Processes of Ray's whose title begins so."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if command[0].startswith(title):
            found.append(process)
    return found


class Job:
    """A job, in a process of its own; its output goes to a file."""

    def __init__(self, stage: Stage, name: str, command: list[str], address: str):
        self.name = name
        self._log = stage.folder / f"{name}-{time.time_ns()}.log"
        environment = {**os.environ, "RAY_ADDRESS": address}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=_REPOSITORY)

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def progress(self) -> int:
        """The last percentage of a progress bar."""
        found = re.findall(r"(\d+)%\|", self.said)
        return int(found[-1]) if found else 0

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
    """Folders that all drills share, faces, shards, and what an undisturbed job makes of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faces, self.many = folder / "faces", folder / "many"
        self.shards, self.undisturbed_shards = folder / "shards", folder / "undisturbed-shards"
        self.storage = folder / "storage"

    def rehearse(self) -> None:
        """Draw faces, prepare them, and train undisturbed."""
        draw.draw_folder(self.faces, _FACES)
        repeat([str(self.faces)], str(self.many), _REPEATED * len(draw.LABELS) * _FACES)
        with self.nodes(2) as nodes:
            for start in (
                lambda: self.prepare(nodes, self.faces, self.shards),
                lambda: self.prepare(nodes, self.many, self.undisturbed_shards),
                lambda: self.train(nodes, "undisturbed", "--num-workers", "2"),
            ):
                job = start()
                if job.end():
                    raise RayganError(f"{job.name} failed undisturbed: {' / '.join(job.said.splitlines()[-2:])}")

    @contextmanager
    def nodes(self, *cores: int) -> Iterator[Nodes]:
        """Nodes for the length of a `with` block."""
        nodes = Nodes(*cores)
        try:
            yield nodes
        finally:
            nodes.stop()

    def prepare(self, nodes: Nodes, photos: Path, output: Path) -> Job:
        """Prepare photos of which many are the same."""
        arguments = ["--input", str(photos), "--output", str(output), "--image-size", "32"]
        filters = ["--skip", "duplicate", "near_duplicate", "outlier", "--chunk-images", "128"]
        return self.job("prepare", nodes, ["prepare.py", *arguments, *filters])

    def train(self, nodes: Nodes, name: str, *more: str, storage: Path | None = None) -> Job:
        """The training of all drills, under a name."""
        return self.job(name, nodes, ["train.py", "--name", name, *self.training(), *more], storage)

    def submit(self, nodes: Nodes, submission: str, name: str, *more: str) -> Job:
        """The same training, handed to the cluster as `ray job submit` does it."""
        command = ["python", "jobs/train.py", "--name", name, *self.training(), *more, "--storage", str(self.storage)]
        return Job(self, submission, nodes.submission(submission, command), nodes.address)

    def training(self) -> list[str]:
        """Arguments of a short training with one core for each worker."""
        kimg = BATCH / 1000
        length = ["--kimg", f"{TOTAL_BATCHES * kimg:g}", "--snapshot-every", "1000", "--quality-every", "0"]
        cadence = ["--log-every", f"{LOG_BATCHES * kimg:g}", "--checkpoint-every", f"{CHECKPOINT_BATCHES * kimg:g}"]
        shape = ["--preset", "quick", "--image-size", "32", "--width", "8", "--batch-size", str(BATCH), "--no-promote"]
        return ["--data", str(self.shards), "--label", "cat", *shape, *length, *cadence]

    def job(self, name: str, nodes: Nodes, arguments: list[str], storage: Path | None = None) -> Job:
        command = [sys.executable, str(_REPOSITORY / "jobs" / arguments[0]), *arguments[1:]]
        return Job(self, name, [*command, "--storage", str(storage or self.storage)], nodes.address)


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

    def steps(self) -> list[int]:
        """Images at which MLflow has the critic's loss, as often as it has it."""
        client = self._client()
        return [m.step for run in self.runs() for m in client.get_metric_history(run.info.run_id, "critic_loss")]

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
