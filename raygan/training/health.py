"""Whether a training is still alive, judging by numbers that it logs anyway.

A GAN dies in one of two ways: its losses overflow, or its generator draws the same image for every latent (mode
collapse, Goodfellow 2016, section 5.1.1). It recovers from neither, so training on would waste hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

#: Losses beyond this mean nothing, long before float32 overflows.
_LARGEST_LOSS = 1e6

#: A generator has collapsed when its samples differ by less than this share of the most they ever did ...
_COLLAPSED_SHARE = 0.05

#: ... provided they did: an untrained generator's gray samples are all alike, too. In units of [-1, 1].
_LEAST_SPREAD = 0.05


def spread(images: Tensor) -> Tensor:
    """How much images (n, 3, S, S) in [-1, 1] differ: their standard deviation, averaged over pixels."""
    return images.float().std(dim=0, correction=0).mean()


class Health:
    """Watches a training's metrics from log to log."""

    def __init__(self) -> None:
        self._widest = 0.0

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """What the training died of, in words, or None if it is alive.

        Args:
            metrics: means by name. Those that end in ``loss`` or ``gradient`` must be finite; ``sample_spread`` is the
                `spread` of samples of fixed latents.
        """
        for name, value in metrics.items():
            if not name.endswith(("loss", "gradient")):
                continue
            if not math.isfinite(value):
                return f"{name} is {value}"
            if name.endswith("loss") and abs(value) > _LARGEST_LOSS:
                return f"{name} has grown to {value:.3g}"
        now = metrics.get("sample_spread", math.inf)
        if math.isfinite(now):
            self._widest = max(self._widest, now)
        if self._widest > _LEAST_SPREAD and not now >= _COLLAPSED_SHARE * self._widest:
            return f"all samples are alike (they differ by {now:.2g}, once by {self._widest:.2g})"
        return None
