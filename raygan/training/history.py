"""A run's metrics, in its folder."""

from __future__ import annotations

import json
import sys
import time

from tqdm import tqdm

from raygan.errors import RayganError
from raygan.runtime import storage


class History:
    """The metrics of a run, one JSON object a line, in its folder: for curves, whether MLflow answers or not."""

    def __init__(self, address: str):
        self._address = address
        text = storage.read_text(address) or ""
        self.records: list[dict[str, float]] = [json.loads(line) for line in text.splitlines()]
        self._dirty_since: float | None = None
        self._said = False

    @property
    def latest(self) -> dict[str, float]:
        """The latest value of each metric."""
        return {name: value for record in self.records for name, value in record.items()}

    def add(self, metrics: dict[str, float]) -> None:
        """Add a record, unless one of the same kind is known for the same images."""
        if not self.knows(metrics):
            self.records.append(metrics)
            self._dirty_since = self._dirty_since or time.monotonic()

    def knows(self, metrics: dict[str, float]) -> bool:
        """Whether there is a record of the same metrics for the same images."""
        return any(set(metrics) == set(old) and metrics["images"] == old["images"] for old in self.records)

    def save(self, at_least_every_s: float = 0.0) -> None:
        """Write the records, if some are new for that long. Where that fails, they are written with the next ones."""
        if self._dirty_since is None or time.monotonic() - self._dirty_since < at_least_every_s:
            return
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        try:
            storage.write_bytes(self._address, lines.encode())
        except RayganError as error:
            if not self._said:
                tqdm.write(f"warning: {error}", file=sys.stderr)
            self._said = True
            self._dirty_since = time.monotonic()  # not at once again
        else:
            self._dirty_since = None
