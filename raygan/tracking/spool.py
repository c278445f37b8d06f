"""Records on their way to MLflow: they are on disk first, so nothing is lost and nobody waits.

A run's spool is a folder. Any process of this machine puts records there, each a file that appears complete or not at
all, without importing MLflow. `outbox` sends them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raygan.runtime import storage

_numbers = itertools.count()


class Spool:
    """The folder of one run's records. Writing is fast and never contacts MLflow.

    Its methods raise RayganError if a record can't be written, for example because the disk is full.
    """

    def __init__(self, folder: Path, run_id: str):
        self.run_id, self.folder, self._latest = run_id, folder / run_id, 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def put_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics at a step. NaN and infinity are left out and named in the tag ``not_finite``."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._put({"metrics": finite, "step": step, "time": int(time.time() * 1000)})
        if len(finite) < len(values):
            bad = ", ".join(sorted(set(values) - set(finite)))
            self.put_tags({"not_finite": f"{bad} at step {step}"})

    def put_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags of the run; the latest value of a tag wins."""
        self._put({"tags": dict(tags)})

    def put_artifact(self, content: bytes, path: str) -> None:
        """Record an artifact of the run, at a ``path`` such as ``pictures/samples.png``."""
        kept = f"{self._name()}.content"
        storage.write_bytes(str(self.folder / kept), content)
        self._put({"artifact": path, "content": kept})

    def put_image(self, content: bytes, name: str, step: int) -> None:
        """Record a picture file of a series: MLflow shows those of all steps, and of several runs side by side."""
        kept = f"{self._name()}.content"
        storage.write_bytes(str(self.folder / kept), content)
        self._put({"image": name, "step": step, "content": kept, "time": int(time.time() * 1000)})

    def put_link(self, model_id: str, step: int) -> None:
        """Record that the run's metrics at a step are those of a logged model."""
        self._put({"model": model_id, "step": step})

    def put_status(self, status: str) -> None:
        """Record the run's end: FINISHED, FAILED or KILLED."""
        self._put({"status": status, "time": int(time.time() * 1000)})

    def forget_end(self) -> None:
        """Drop an end that an earlier process has recorded and not sent: the run goes on, or has ended otherwise."""
        for path in self.waiting():
            if path.read_bytes().startswith(b'{"status"'):
                path.unlink()

    def waiting(self) -> list[Path]:
        """The records not yet sent, oldest first."""
        return sorted(self.folder.glob("*.json"))

    def waiting_files(self) -> list[Path]:
        """The files of the records not yet sent, those of artifacts' contents included."""
        return [*self.folder.glob("*.json"), *self.folder.glob("*.content")]

    def bytes_waiting(self) -> int:
        """Bytes of artifacts not yet sent."""
        return sum(path.stat().st_size for path in self.folder.glob("*.content"))

    def _put(self, record: dict[str, Any]) -> None:
        storage.write_bytes(str(self.folder / f"{self._name()}.json"), json.dumps(record).encode())

    def _name(self) -> str:
        # Records are sent in the order of their names, also where the clock is set back meanwhile.
        self._latest = max(time.time_ns(), self._latest + 1)
        return f"{self._latest:020d}-{os.getpid()}-{next(_numbers):06d}"
