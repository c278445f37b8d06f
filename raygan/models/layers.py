"""What the architectures share: how stages widen, how images are resampled, and where the class goes in.

Resampling is a fixed filter beside a learned convolution, never a convolution alone: a transposed convolution weights
each of the four positions of its grid differently, and samples show that grid as a checkerboard (Odena et al. 2016).

Conditioning follows Mescheder et al. 2018 (arXiv 1801.04406): the generator gets the class along with the latent, and
the critic has one score per class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygan.models.double_backward import convolve
from raygan.models.gan import NetworkSettings


def stage_channels(settings: NetworkSettings) -> list[int]:
    """Channels of each stage, counted from the image, whose side is twice the first stage's. The last is 4x4 px."""
    stages = int(math.log2(settings.image_size)) - 2
    return [settings.width * min(2**stage, 16) for stage in range(stages)]


def with_classes(latents: Tensor, classes: Tensor | None, count: int) -> Tensor:
    """Latents (N, z) beside their classes, one-hot: (N, z + count, 1, 1). Raises ValueError if classes are missing."""
    if count:
        if classes is None:
            raise ValueError(f"a conditional generator needs classes, numbers below {count}")
        latents = torch.cat([latents, _one_hot(classes, count, latents)], 1)
    return latents[:, :, None, None]


def scores_of_classes(scores: Tensor, classes: Tensor | None, count: int) -> Tensor:
    """The score (N,) of each image for its class, from scores (N, count or 1). Raises ValueError without classes."""
    if count:
        if classes is None:
            raise ValueError(f"a conditional critic needs classes, numbers below {count}")
        # A product, not an index: its second derivative is as fast as its first.
        scores = (scores * _one_hot(classes, count, scores)).sum(1)
    return scores.flatten()


class UpConvolution(nn.Module):
    """Doubling by nearest neighbors, then a 3x3 convolution, computed as one transposed convolution.

    A nearest neighbor is a 2x2 box filter, so both together are a 4x4 kernel with stride 2, at a transposed
    convolution's cost.
    """

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool = True):
        super().__init__()
        self.learned = nn.ConvTranspose2d(channels_in, channels_out, 3, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv_transpose2d(images, _boxed(self.learned.weight), self.learned.bias, stride=2, padding=1)

    def plain(self) -> nn.ConvTranspose2d:
        """The same as one of torch's layers, with a copy of the current weights."""
        learned = self.learned
        layer = nn.ConvTranspose2d(learned.in_channels, learned.out_channels, 4, 2, 1, bias=learned.bias is not None)
        layer.weight.data = _boxed(learned.weight.data)
        if learned.bias is not None:
            layer.bias = learned.bias
        return layer.train(self.training)


class DownConvolution(nn.Module):
    """A 3x3 convolution, then the mean of each 2x2 px, computed as one convolution with stride 2."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.learned = nn.Conv2d(channels_in, channels_out, 3)

    def forward(self, images: Tensor) -> Tensor:
        return convolve(images, 0.25 * _boxed(self.learned.weight), self.learned.bias, stride=2, padding=1)


class Upsample(nn.Module):
    """Doubles the side by bilinear interpolation: the filter (1, 3, 3, 1) / 4."""

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, scale_factor=2.0, mode="bilinear", align_corners=False)


def _boxed(kernels: Tensor) -> Tensor:
    """Kernels (.., 3, 3) filtered by a 2x2 box: (.., 4, 4)."""
    wide = F.pad(kernels, (0, 1)) + F.pad(kernels, (1, 0))
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))


def _one_hot(classes: Tensor, count: int, like: Tensor) -> Tensor:
    """Classes (N,) as rows (N, count) with a single 1 each."""
    # `functional.one_hot` would look at the classes, and the host wait for them.
    return (classes.to(like.device)[:, None] == torch.arange(count, device=like.device)).to(like.dtype)
