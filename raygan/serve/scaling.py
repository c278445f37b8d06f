"""How many replicas of the models there should be: the policy for `autoscaling_config` in `serve_config.yaml`.

A call carries many requests (`calls`), so Serve's own count of calls would say little about the load.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

#: What replicas report: the requests that they are working on.
REQUESTS = "requests"


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """`target_ongoing_requests` requests for each replica; Serve applies limits and delays."""
    reported = (context.aggregated_metrics or {}).get(REQUESTS)
    if not reported:  # nothing has been heard yet
        return context.target_num_replicas, {}
    return sum(reported.values()) / context.config.get_target_ongoing_requests(), {}
