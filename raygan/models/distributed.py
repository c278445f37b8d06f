"""Data parallelism: which rows of a global batch are a rank's, and networks whose gradients are averaged over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Share:
    """Which rows of a global batch belong to this rank; the parts differ by at most one row."""

    rank: int = 0
    world_size: int = 1

    def rows(self, count: int) -> slice:
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


def distributed(network: nn.Module, share: Share, trial: Callable[[nn.Module], Tensor]) -> nn.Module:
    """The network within `DistributedDataParallel`, or itself if there is one rank. A collective call.

    trial: a forward pass on anything. After its first backward pass DDP lays gradients out anew, and where a gradient
    lies decides in which order gloo adds up those of three ranks or more. The trial gets this behind us, so that a run
    that goes on rounds as one that was never interrupted.
    """
    if share.world_size == 1:
        return network
    # Buffers are batch statistics: rank 0's must not overwrite the others' within a step.
    wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    buffers = [buffer.clone() for buffer in network.buffers()]
    trial(wrapped).sum().backward()
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return wrapped
