"""The exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """torch's `AveragedModel` of parameters and buffers, with a weight that may change from update to update.

    torch's reads the number of updates from a tensor in each. This one counts itself, and never waits for a device.
    """

    def __init__(self, network: nn.Module, keep: Callable[[], float]):
        """Start with a copy of the network.

        Args:
            network: on any device.
            keep: tells the weight in [0, 1] of the old average at an update.
        """
        super().__init__(network, use_buffers=True)
        self._keep = keep
        self._updates: int | None = 0
        self.register_load_state_dict_post_hook(_forget_count)

    def go_on(self) -> None:
        """Keep the weights that were put into the average: the first update moves them, too."""
        self.n_averaged.fill_(1)
        self._updates = 1

    def update_parameters(self, model: nn.Module) -> None:
        """Move toward the network; the first update copies it, unless it is to `go_on`."""
        updates = int(self.n_averaged) if self._updates is None else self._updates
        averages = [each.detach() for each in (*self.module.parameters(), *self.module.buffers())]
        currents = [each.detach() for each in (*model.parameters(), *model.buffers())]
        if updates:
            move_average(averages, currents, self._keep())
        else:
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)
        self.n_averaged += 1
        self._updates = updates + 1


def _forget_count(average: nn.Module, _: Any) -> None:
    average._updates = None  # type: ignore[assignment]  # read from what was loaded when it is needed


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
