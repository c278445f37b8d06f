"""How many replicas of the models there should be: the policy for `autoscaling_config` in `serve_config.yaml`.

A call carries many requests (`calls`), so Serve's own count of calls would say little about the load.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.config import AutoscalingContext

#: What replicas report: the requests that they are working on.
REQUESTS = "requests"


class UnderWay:
    """The number of requests that a replica is working on, on average.

    Serve looks every few seconds. The number at that moment would mostly be 0 for clients whose requests take
    milliseconds, and the last replica would be taken away from them.
    """

    def __init__(self) -> None:
        self._count, self._request_seconds = 0, 0.0
        self._changed = self._read = time.monotonic()

    def add(self, requests: int) -> None:
        """Count this many more from now on, or fewer if negative."""
        now = time.monotonic()
        self._request_seconds += self._count * (now - self._changed)
        self._count, self._changed = self._count + requests, now

    def average(self) -> float:
        """The average since this was last called."""
        self.add(0)
        seconds = self._changed - self._read
        average = self._request_seconds / seconds if seconds else float(self._count)
        self._read, self._request_seconds = self._changed, 0.0
        return average


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """`target_ongoing_requests` requests for each replica; Serve applies limits and delays."""
    reported = (context.aggregated_metrics or {}).get(REQUESTS)
    if not reported:  # nothing has been heard yet
        return context.target_num_replicas, {}
    return sum(reported.values()) / context.config.get_target_ongoing_requests(), {}
