"""A run that a drill watches, as it stands in storage and in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from raygan import tracking
from raygan.runtime.settings import StorageSettings

if TYPE_CHECKING:
    from raygan.benchmarks.faults.harness import Stage


class WatchedRun:
    """A run as it stands in storage and in MLflow."""

    def __init__(self, stage: Stage, name: str, storage: Path | None = None, tracking_uri: str | None = None):
        self.name, self._storage = name, storage or stage.storage
        self.folder = self._storage / "runs" / name
        self._tracking_uri = tracking_uri

    def seen(self) -> int:
        """Images seen, by the last metrics on disk."""
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

    def statuses(self) -> list[str]:
        """The status of each MLflow run with this name."""
        return [run.info.status for run in self._runs()]

    def child_statuses(self) -> list[str]:
        """The status of each MLflow run below this one."""
        (run,) = self._runs()
        return [child.info.status for child in self._search(f"tags.mlflow.parentRunId = '{run.info.run_id}'")]

    def steps(self, prefix: str) -> dict[str, list[int]]:
        """The steps of each metric in MLflow whose name has the prefix, with repetitions."""
        client, found = self._client(), dict[str, list[int]]()
        for run in self._runs():
            for name in run.data.metrics:
                if name.startswith(prefix):
                    history = client.get_metric_history(run.info.run_id, name)
                    found.setdefault(name, []).extend(entry.step for entry in history)
        return found

    def _runs(self) -> list[Any]:
        return self._search(f"attributes.run_name = '{self.name}'")

    def _search(self, query: str) -> list[Any]:
        client = self._client()
        experiment = client.get_experiment_by_name("raygan")
        return list(client.search_runs([experiment.experiment_id], query))

    def _client(self) -> Any:
        return tracking.connect(StorageSettings(storage=str(self._storage), tracking_uri=self._tracking_uri))


def _images_of(description: Path) -> int:
    """Images that a checkpoint has seen; 0 while it is being written or removed."""
    try:
        kimg: float = json.loads(description.read_text(encoding="utf-8"))["about"]["kimg"]
    except (OSError, ValueError):
        return 0
    return round(1000 * kimg)
