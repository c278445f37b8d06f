"""Max pooling over bfloat16 for serving: the same bits as torch's, in a third of the time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Elements below which torch's own pooling is faster.
FEW = 2**15


class ReluMaxPool2d(nn.Module):
    """3x3 MaxPool2d for bfloat16 images, channels last, without values below 0, as they are after a ReLU.

    Such values have the same order as their bits read as integers. A window's maximum is the maximum of its rows'
    maxima. So a few passes over integers are enough.
    """

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self._pool = pool
        self._reduce = _maximum_of_three if pool.stride == 1 else _maximum_of_pairs

    @staticmethod
    def can_replace(pool: nn.MaxPool2d, shape: torch.Size) -> bool:
        """Whether it computes the same as a pool does on images of this shape (N, C, H, W)."""
        if pool.kernel_size != 3 or pool.dilation != 1:
            return False
        halves = pool.stride == 2 and pool.padding == 0 and pool.ceil_mode and not shape[2] % 2 and not shape[3] % 2
        return halves or (pool.stride == 1 and pool.padding == 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.numel() < FEW:
            small: Tensor = self._pool(images)
            return small
        bits = images.permute(0, 2, 3, 1).view(torch.int16)
        for dimension in (1, 2):
            bits = self._reduce(bits.movedim(dimension, 0)).movedim(0, dimension)
        return bits.view(torch.bfloat16).permute(0, 3, 1, 2)


def _maximum_of_three(lines: Tensor) -> Tensor:
    """The maximum of each line and its neighbors: stride 1, padding 1."""
    maximum = lines.clone()
    torch.maximum(maximum[1:], lines[:-1], out=maximum[1:])
    torch.maximum(maximum[:-1], lines[1:], out=maximum[:-1])
    return maximum


def _maximum_of_pairs(lines: Tensor) -> Tensor:
    """The maximum of each pair of lines and the line after it, if any: stride 2, no padding, ceiling mode."""
    first = lines[::2]
    maximum = torch.maximum(first, lines[1::2])
    torch.maximum(maximum[:-1], first[1:], out=maximum[:-1])
    return maximum
