"""Versions that could not be loaded, and when to try again: a try costs a process and a transfer of the files."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection

from raygan.serve.calls import Busy, ReplicaDied
from raygan.serve.messages import ModelVersion

#: Seconds until the first retry, doubled each time up to the maximum.
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 5.0, 60.0

#: Versions remembered.
_MOST = 1000


class Backoff:
    """Errors of versions that were tried recently."""

    def __init__(self) -> None:
        self._failed: OrderedDict[ModelVersion, tuple[int, float, Exception]] = OrderedDict()

    def __contains__(self, model: object) -> bool:
        """Whether the last try failed, however long ago."""
        return model in self._failed

    def error(self, model: ModelVersion) -> Exception | None:
        """What the last try failed with, if it is too soon for another."""
        _, again_at, error = self._failed.get(model, (0, 0.0, None))
        return error if time.monotonic() < again_at else None

    def failed(self, model: ModelVersion, error: Exception) -> None:
        """Record a failure. Where replicas were busy or died, the next try may come at once."""
        times = self._failed.pop(model, (0, 0.0, error))[0]
        doubled = _RETRY_SECONDS * 2 ** min(times, 10)  # a thousand failures take a day, and 2**1024 is no float
        pause = 0.0 if isinstance(error, Busy | ReplicaDied) else min(doubled, _MAX_RETRY_SECONDS)
        self._failed[model] = times + 1, time.monotonic() + pause, error
        if len(self._failed) > _MOST:
            self._failed.popitem(last=False)

    def forget(self, model: ModelVersion) -> None:
        """Record a success."""
        self._failed.pop(model, None)

    def keep(self, models: Collection[ModelVersion]) -> None:
        """Forget all other versions."""
        for model in [model for model in self._failed if model not in models]:
            del self._failed[model]
