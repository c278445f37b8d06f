"""Batch normalisation over all ranks, on any device.

torch's own `SyncBatchNorm` works on GPUs only. This one does the same arithmetic with `torch.distributed`'s
differentiable all-reduce, so that training on CPUs with gloo is the same mathematics.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all ranks together, in training mode within a process group.

    Ranks may have different numbers of images. State and output in evaluation mode are `nn.BatchNorm2d`'s.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(images)
        wide = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        count = wide.new_tensor([images.numel() / images.shape[1]])
        totals = differentiable.all_reduce(torch.cat([wide.sum((0, 2, 3)), count]))
        count, mean = totals[-1], totals[:-1] / totals[-1]
        # The mean is subtracted before squaring: the difference of two large sums would lose the variance.
        centred = wide - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(images.dtype)


def synchronise(network: nn.Module) -> None:
    """Make every `nn.BatchNorm2d` within `network` a `SyncBatchNorm2d`, in place, keeping its state."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
