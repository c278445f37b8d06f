"""The metrics of the report card, by name: the columns of its records, the rows and charts of its page.

A package offers more through entry points in the group ``raygan.metrics``:

    from raygan.metrics.registry import Metric

    shift = Metric(lambda sets: float((sets.fake.mean(0) - sets.real.mean(0)).norm()), "lower", "distance of the means")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raygan.registry import Registry

if TYPE_CHECKING:  # needs torch, and names are listed without it
    from raygan.metrics.comparison import Comparison


@dataclass(frozen=True)
class Metric:
    """A number about generated images. Its name is the one it is registered under.

    Attributes:
        compare: gives the value, or the value and its standard error, of a `Comparison` of features. A metric with
            an error gets a chart. None: the value is the mean of numbers that the evaluation has for each image.
        better: which values are good; None if neither end is.
        meaning: what the page says about the metric, in one line.
    """

    compare: Callable[[Comparison], float | tuple[float, float]] | None
    better: Literal["lower", "higher"] | None
    meaning: str


#: In the order of the page.
METRICS: Registry[Metric] = Registry(
    "raygan.metrics",
    {
        "fid": "raygan.metrics.report_card:FID",
        "kid": "raygan.metrics.report_card:KID",
        "precision": "raygan.metrics.report_card:PRECISION",
        "recall": "raygan.metrics.report_card:RECALL",
        "density": "raygan.metrics.report_card:DENSITY",
        "coverage": "raygan.metrics.report_card:COVERAGE",
        "diversity": "raygan.metrics.report_card:DIVERSITY",
        "train_distance": "raygan.metrics.report_card:TRAIN_DISTANCE",
        "copies": "raygan.metrics.report_card:COPIES",
        "agreement": "raygan.metrics.report_card:AGREEMENT",
        "confidence": "raygan.metrics.report_card:CONFIDENCE",
        "animal_mass": "raygan.metrics.report_card:ANIMAL_MASS",
    },
)
