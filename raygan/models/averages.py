"""The exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def move_average(averages: Iterable[Tensor], currents: Iterable[Tensor], keep: float) -> None:
    """Move averages toward the current values, in place. Integers, such as batch counters, are copied.

    Args:
        averages: parameters and buffers of the EMA.
        currents: those of the network, in the same order.
        keep: weight of the old average, in [0, 1].
    """
    pairs = list(zip(averages, currents, strict=True))
    weights = [pair for pair in pairs if pair[0].is_floating_point()]
    if weights:
        get_ema_multi_avg_fn(keep)([average for average, _ in weights], [current for _, current in weights], None)
    for average, current in pairs:
        if not average.is_floating_point():
            average.copy_(current)
