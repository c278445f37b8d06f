"""Batch normalization over all ranks, on any device.

torch's `SyncBatchNorm` works on GPUs only, and makes the host wait in each forward pass: it picks the ranks with images
by a mask, whose count the host needs. This one computes the same with one collective call in each direction, never
waits, and makes training on CPUs with gloo mathematically the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all ranks, in training mode within a process group.

    Ranks may have different numbers of images, or none. Its state, and its output in evaluation mode, are those of
    `nn.BatchNorm2d`. It has no second derivative.
    """

    def forward(self, images: Tensor) -> Tensor:
        # Ray Train puts even a single worker in a group.
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(images)
        wide = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        count, mean, variance = _statistics(wide.detach())
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        normalized: Tensor = _Normalize.apply(wide, self.weight, self.bias, mean, variance, count, self.eps)
        return normalized.to(images.dtype)


def synchronize(network: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` of a network into a `SyncBatchNorm2d`, in place, with the same state."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean (C,) and biased variance (C,) over the images (n, C, H, W) of all ranks."""
    count = images.numel() // images.shape[1]
    if count:
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    else:
        variance = mean = images.new_zeros(images.shape[1])
    own = torch.cat([images.new_full((1,), count), mean, variance])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    everyone = torch.stack(gathered)
    counts, (means, variances) = everyone[:, :1], everyone[:, 1:].chunk(2, 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    # Chan et al. 1983: variances within ranks plus the variance of their means; no large squares cancel.
    return total, mean, (counts * (variances + (means - mean).square())).sum(0) / total


class _Normalize(torch.autograd.Function):
    """Normalization by the statistics of all ranks, differentiated through them (Ioffe and Szegedy 2015)."""

    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        context.save_for_backward(images, weight, mean, torch.rsqrt(variance + eps), count)
        return functional.batch_norm(images, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse, count = context.saved_tensors
        centered = images - mean[:, None, None]
        own = torch.stack([gradient.sum((0, 2, 3)), (gradient * centered).sum((0, 2, 3)) * inverse])
        totals = own.clone()
        dist.all_reduce(totals)
        along_bias, along_weight = totals / count
        scale = (weight * inverse)[:, None, None]
        change = gradient - along_bias[:, None, None]
        change = change.addcmul_(centered, (along_weight * inverse)[:, None, None], value=-1).mul_(scale)
        return change, own[1], own[0], None, None, None, None
