"""Data parallelism: each rank's rows of a global batch, and networks whose gradients are averaged over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Share:
    """A rank's share of each global batch. Shares differ by at most one row."""

    rank: int = 0
    world_size: int = 1

    def rows(self, count: int) -> slice:
        """The rank's rows of a batch with `count` rows."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


def distributed(
    network: nn.Module,
    share: Share,
    trial: Callable[[nn.Module], Tensor],
    *,
    bucket_megabytes: float = 25.0,
    bf16: bool = False,
) -> nn.Module:
    """The network inside `DistributedDataParallel`, or the network itself if there is only one rank.

    This is a collective call. After its first backward pass, DDP changes the layout of gradients, and with three or
    more ranks the layout decides the order in which gloo sums them. A trial pass gets this over with, so that a resumed
    run rounds like an uninterrupted one.

    Args:
        network: on the rank's device.
        share: the rank's.
        trial: runs a forward pass on any input.
        bucket_megabytes: gradients are summed in pieces of this size, each while later ones are still computed.
        bf16: sum them in bfloat16, which halves the bytes that are sent.
    """
    if share.world_size == 1:
        return network
    # Batch statistics differ between ranks: rank 0's must not overwrite the others' within a step.
    wrapped = DistributedDataParallel(network, broadcast_buffers=False, bucket_cap_mb=bucket_megabytes)
    if bf16:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    buffers = [buffer.clone() for buffer in network.buffers()]
    trial(wrapped).sum().backward()
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return wrapped
