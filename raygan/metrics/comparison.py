"""Generated images beside real ones, by their features; what several metrics need is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from raygan.metrics import distances


@dataclass(frozen=True, eq=False)
class Comparison:
    """The features of two sets of images in one network.

    Attributes:
        real: float32 (n, d), of real photos.
        fake: float32 (m, d), of generated images.
    """

    real: Tensor
    fake: Tensor

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """See `raygan.metrics.distances.precision_recall`."""
        return distances.precision_recall(self.real, self.fake)

    @cached_property
    def density_coverage(self) -> tuple[float, float]:
        """See `raygan.metrics.distances.density_coverage`."""
        return distances.density_coverage(self.real, self.fake)

    @cached_property
    def nearest_real(self) -> tuple[Tensor, Tensor]:
        """Cosine distance (m,) from each generated image to the nearest real photo, and that photo's index (m,)."""
        return distances.nearest(self.fake, self.real)

    @cached_property
    def real_spacing(self) -> Tensor:
        """Cosine distance (n,) from each real photo to the nearest other one."""
        return distances.nearest(self.real, self.real, itself=True)[0]
