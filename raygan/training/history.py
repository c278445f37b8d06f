"""A run's metrics, kept in its folder whether MLflow answers or not."""

from __future__ import annotations

import json
import sys
import time

from tqdm import tqdm

from raygan.addresses import public
from raygan.cli import strict_json
from raygan.errors import RayganError
from raygan.runtime import storage


class History:
    """A JSON Lines file of metrics, a record for each moment.

    Attributes:
        records: metrics by name, each with ``images``.
    """

    def __init__(self, address: str):
        """Read the records at an address, if there are any; what is damaged there is left out, with a warning."""
        self._address = address
        lines = (storage.read_text(address) or "").splitlines()
        self.records: list[dict[str, float]] = [record for line in lines if (record := _read(line))]
        if damaged := len(lines) - len(self.records):
            tqdm.write(f"warning: {damaged} of {len(lines)} records in {public(address)} are damaged", file=sys.stderr)
        self._dirty_since: float | None = None
        self._warned = False

    @property
    def latest(self) -> dict[str, float]:
        """The latest value of each metric."""
        return {name: value for record in self.records for name, value in record.items()}

    def at(self, images: int) -> dict[str, float]:
        """The metrics recorded when so many images had been seen."""
        return {name: value for record in self.records if record["images"] == images for name, value in record.items()}

    def add(self, metrics: dict[str, float]) -> None:
        """Add a record, unless it is known already."""
        if not self.knows(metrics):
            self.records.append(metrics)
            self._dirty_since = self._dirty_since or time.monotonic()

    def knows(self, metrics: dict[str, float]) -> bool:
        """Whether there is a record with the same metrics at the same images."""
        return any(set(metrics) == set(old) and metrics["images"] == old["images"] for old in self.records)

    def save(self, at_least_every_s: float = 0.0) -> None:
        """Write the records if there are new ones. If that fails, they are written with the next ones.

        Args:
            at_least_every_s: leave records unwritten for up to so many seconds.
        """
        if self._dirty_since is None or time.monotonic() - self._dirty_since < at_least_every_s:
            return
        lines = "".join(strict_json(json.dumps(record)) + "\n" for record in self.records)
        try:
            storage.write_bytes(self._address, lines.encode())
        except RayganError as error:
            if not self._warned:
                tqdm.write(f"warning: {error}", file=sys.stderr)
            self._warned = True
            self._dirty_since = time.monotonic()  # don't retry at once
        else:
            self._dirty_since = None


def _read(line: str) -> dict[str, float] | None:
    """A record; None if it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(record, dict) and "images" in record):
        return None
    return {name: value for name, value in record.items() if value is not None}  # null was NaN
