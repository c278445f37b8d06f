"""The gateway's Prometheus metrics, exported by every Ray node with ray_ before their names: ray_raygan_requests_total.

raygan_requests_total          requests by route and status
raygan_request_seconds         request latency by route
raygan_stage_seconds           time per call to a deployment: waiting in the gateway, transport, computing; for encoding
                               pictures and decoding uploads: waiting, computing
raygan_batch_images            images per call to a deployment
raygan_waiting_images          images that a gateway has under way, sampled every poll_seconds
raygan_not_served              champions that aren't served, and deployments without a replica
raygan_samples_total           samples by label: plain; with a minimum confidence, drawn and accepted
raygan_rejected_total          requests rejected because a stage was full: a deployment's queue, the gateway, encoding,
                               decoding, searches for confident samples, streams, answers that clients have yet to read
raygan_retries_total           calls to a deployment repeated because a replica died, hung or could not load the version
"""

from __future__ import annotations

from typing import Any, Protocol

_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_IMAGES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class Metrics(Protocol):
    """Where counts and times go."""

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add a value to a histogram, or set a gauge to it."""


class RayMetrics:
    """This deployment's metrics, through Ray's exporter."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self.counters: dict[str, Any] = {
            "requests": metrics.Counter("raygan_requests_total", "Requests.", ("route", "status")),
            "samples": metrics.Counter("raygan_samples_total", "Samples.", ("label", "outcome")),
            "rejected": metrics.Counter("raygan_rejected_total", "Rejected requests.", ("stage",)),
            "retries": metrics.Counter("raygan_retries_total", "Retried calls.", ("stage",)),
        }
        self.values: dict[str, Any] = {
            "request_seconds": metrics.Histogram("raygan_request_seconds", "Request latency.", _SECONDS, ("route",)),
            "stage_seconds": metrics.Histogram("raygan_stage_seconds", "Stage time.", _SECONDS, ("stage", "part")),
            "batch_images": metrics.Histogram("raygan_batch_images", "Images per call.", _IMAGES, ("stage",)),
            "not_served": metrics.Gauge("raygan_not_served", "Champions not served, deployments without a replica."),
            "waiting_images": metrics.Gauge("raygan_waiting_images", "Images under way.", ("stage",)),
        }

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        if amount:
            self.counters[name].inc(amount, _in_ascii(tags))

    def observe(self, name: str, value: float, **tags: str) -> None:
        metric = self.values[name]
        (metric.set if name in ("waiting_images", "not_served") else metric.observe)(value, _in_ascii(tags))


def _in_ascii(tags: dict[str, str]) -> dict[str, str]:
    """Tags as Ray takes them: without letters of other scripts, such as a label has, which are escaped."""
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in tags.items()}
