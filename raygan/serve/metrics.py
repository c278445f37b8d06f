"""What the gateway counts and times, as Prometheus metrics that every Ray node exports.

raygan_requests_total          requests by route and status
raygan_request_seconds         their time from first byte to last, by route
raygan_stage_seconds           time of a call to a stage: waiting in the gateway, the way there, computing; of pictures
                               that are encoded and uploads that are decoded: waiting, computing
raygan_batch_images            images in a call to a stage
raygan_waiting_images          images that wait in the gateway for a stage
raygan_samples_total           samples by label: plain; where a confidence was asked for drawn, and accepted of those
raygan_rejected_total          requests that were turned away because too much was waiting for a stage, or was under way
                               in the gateway
raygan_retries_total           calls to a stage that were made again because a replica had died
"""

from __future__ import annotations

from typing import Any, Protocol

_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_IMAGES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class Meters(Protocol):
    """Where counts and times go."""

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add a value to a histogram, or set a gauge to it."""


class NoMeters:
    """Counts nothing: for tests and for use without Ray."""

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        pass

    def observe(self, name: str, value: float, **tags: str) -> None:
        pass


class RayMeters:
    """Metrics of this deployment, through Ray's exporter."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self._counters: dict[str, Any] = {
            "requests": metrics.Counter("raygan_requests_total", "Requests.", ("route", "status")),
            "samples": metrics.Counter("raygan_samples_total", "Samples.", ("label", "outcome")),
            "rejected": metrics.Counter("raygan_rejected_total", "Requests turned away.", ("stage",)),
            "retries": metrics.Counter("raygan_retries_total", "Calls made again.", ("stage",)),
        }
        self._values: dict[str, Any] = {
            "request_seconds": metrics.Histogram("raygan_request_seconds", "Their seconds.", _SECONDS, ("route",)),
            "stage_seconds": metrics.Histogram(
                "raygan_stage_seconds", "Seconds of stages.", _SECONDS, ("stage", "part")
            ),
            "batch_images": metrics.Histogram("raygan_batch_images", "Images in a call.", _IMAGES, ("stage",)),
            "waiting_images": metrics.Gauge("raygan_waiting_images", "Images that wait.", ("stage",)),
        }

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        if amount:
            self._counters[name].inc(amount, tags)

    def observe(self, name: str, value: float, **tags: str) -> None:
        meter = self._values[name]
        (meter.set if name == "waiting_images" else meter.observe)(value, tags)
