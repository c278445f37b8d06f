"""The scene of the drills: a Ray cluster on this machine, jobs as users start them, and what these leave behind."""

from __future__ import annotations

import json
import os
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
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

import raygan
from raygan import tracking
from raygan.config import StorageSettings
from raygan.errors import RayganError
from raygan.photos import draw

T = TypeVar("T")

_JOBS = Path(raygan.__file__).parent.parent / "jobs"

#: Seconds that anything may take to happen.
_PATIENCE = 240.0

#: Drawn faces of each label.
_FACES = 300

#: The training of all drills: 24,000 images in batches of 16, a log every 25 batches, a checkpoint every 100.
BATCH, LOG_BATCHES, CHECKPOINT_BATCHES, TOTAL_BATCHES = 16, 25, 100, 1500


class Nodes:
    """A Ray cluster with processes of its own; cores: of its one node."""

    def __init__(self, cores: int):
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": True})

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of Ray's whose title begins so."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or [""]
            if command[0].startswith(title):
                found.append(process)
        return found

    def stop(self) -> None:
        self._cluster.shutdown()


class Job:
    """A job of `jobs/`, in a process of its own; its output goes to a file."""

    def __init__(self, stage: Stage, name: str, arguments: list[str], address: str):
        self.name = name
        self._log = stage.folder / f"{name}-{time.time_ns()}.log"
        environment = {**os.environ, "RAY_ADDRESS": address}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_JOBS / arguments[0]), *arguments[1:]], stdout=log, stderr=log, env=environment
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

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
    """Folders that all drills share, faces, shards, and what an undisturbed training makes of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faces, self.shards, self.storage = folder / "faces", folder / "shards", folder / "storage"

    def rehearse(self) -> None:
        """Draw faces, prepare them, and train undisturbed."""
        draw.draw_folder(self.faces, _FACES)
        with self.nodes(2) as nodes:
            for start in (
                lambda: self.prepare(nodes),
                lambda: self.train(nodes, "undisturbed", "--num-workers", "2"),
            ):
                job = start()
                if job.end():
                    raise RayganError(f"{job.name} failed undisturbed: {' / '.join(job.said.splitlines()[-2:])}")

    @contextmanager
    def nodes(self, cores: int) -> Iterator[Nodes]:
        """A cluster for the length of a `with` block."""
        nodes = Nodes(cores)
        try:
            yield nodes
        finally:
            nodes.stop()

    def prepare(self, nodes: Nodes) -> Job:
        """Prepare the faces."""
        arguments = ["--input", str(self.faces), "--output", str(self.shards), "--image-size", "32"]
        return self._job("prepare", nodes, ["prepare.py", *arguments])

    def train(self, nodes: Nodes, name: str, *more: str) -> Job:
        """The training of all drills, under a name, with one core for each worker."""
        kimg = BATCH / 1000
        length = ["--kimg", f"{TOTAL_BATCHES * kimg:g}", "--snapshot-every", "1000", "--quality-every", "0"]
        cadence = ["--log-every", f"{LOG_BATCHES * kimg:g}", "--checkpoint-every", f"{CHECKPOINT_BATCHES * kimg:g}"]
        shape = ["--preset", "quick", "--image-size", "32", "--width", "8", "--batch-size", str(BATCH), "--no-promote"]
        data = ["--data", str(self.shards), "--label", "cat"]
        return self._job(name, nodes, ["train.py", "--name", name, *data, *shape, *length, *cadence, *more])

    def _job(self, name: str, nodes: Nodes, arguments: list[str]) -> Job:
        return Job(self, name, [*arguments, "--storage", str(self.storage)], nodes.address)


class Watched:
    """A training's run as it stands in storage and in MLflow."""

    def __init__(self, stage: Stage, name: str):
        self.name, self._storage = name, stage.storage
        self.folder = self._storage / "runs" / name

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
        client = self._client()
        experiment = client.get_experiment_by_name("raygan")
        return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{self.name}'"))

    def steps(self) -> list[int]:
        """Images at which MLflow has the critic's loss, as often as it has it."""
        client = self._client()
        return [m.step for run in self.runs() for m in client.get_metric_history(run.info.run_id, "critic_loss")]

    def _client(self) -> MlflowClient:
        return tracking.connect(StorageSettings(storage=str(self._storage), tracking_uri=None))


def _images_of(description: Path) -> int:
    """Images that a checkpoint has seen; 0 while it is being written or taken away."""
    try:
        kimg: float = json.loads(description.read_text(encoding="utf-8"))["about"]["kimg"]
    except (OSError, ValueError):
        return 0
    return round(1000 * kimg)
