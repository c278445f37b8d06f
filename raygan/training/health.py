"""Whether a training is still alive, from numbers that it logs anyway.

A GAN dies in one of two ways: its numbers leave the range of numbers, or its generator draws the same image
whatever the latent (mode collapse, Goodfellow 2016, section 5.1.1). Both are for good: going on costs hours and
brings nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

#: Losses beyond this are past all meaning, though float32 goes on for a while.
_LARGEST_LOSS = 1e6

#: A generator is collapsed when its samples differ by less than this share of the most that they ever did ...
_COLLAPSED_SHARE = 0.05

#: ... once they did differ: an untrained generator's grey samples are all alike too. In units of [-1, 1].
_LEAST_SPREAD = 0.05


def spread(images: Tensor) -> Tensor:
    """How much images (n, 3, S, S) in [-1, 1] differ: the standard deviation over them, averaged over pixels."""
    return images.float().std(dim=0, correction=0).mean()


class Health:
    """Watches metrics from one log to the next."""

    def __init__(self) -> None:
        self._widest = 0.0

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """What the training died of, in words, or None while it lives.

        metrics: means by name; names that end in ``loss`` or ``gradient`` must be finite, ``sample_spread`` is
        the `spread` of samples of fixed latents.
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
