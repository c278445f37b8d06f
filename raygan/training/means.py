"""Means of the step's terms, summed on the device between two logs."""

from __future__ import annotations

import torch

from raygan.training.objectives import Terms


class Means:
    """Means of per-image terms over batches and ranks.

    Attributes:
        batches: added since the last `take`.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._sums: dict[str, torch.Tensor] = {}
        self._times: dict[str, int] = {}
        self.batches = 0

    def add(self, terms: Terms) -> None:
        """Add a step's sums over this rank's images."""
        self.batches += 1
        for name, value in terms.items():
            known = self._sums.get(name)
            self._sums[name] = value if known is None else known + value
            self._times[name] = self._times.get(name, 0) + 1

    def take(self, world_size: int, own: dict[str, float]) -> dict[str, float]:
        """The means since the last call, and `own` numbers summed over ranks. A collective call."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        sums = torch.cat([sums, sums.new_tensor(list(own.values()))])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        totals = sums.tolist()
        means = {n: s / (self._times[n] * self._batch_size) for n, s in zip(names, totals, strict=False)}
        self._sums, self._times, self.batches = {}, {}, 0
        return means | dict(zip(own, totals[len(names) :], strict=True))
