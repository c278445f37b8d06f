"""Residual networks without normalization, as R3GAN builds them (Huang et al. 2024, arXiv 2501.05441).

Each stage adds to its images the output of a bottleneck: a 1x1 convolution to twice the channels, a grouped 3x3
convolution and a 1x1 convolution back, with LeakyReLU between. Between stages, a fixed filter resamples and a 1x1
convolution changes the number of channels. Initialization keeps the variance through any number of stages: each
bottleneck ends in zeros, and its other layers shrink as the network grows (Zhang et al. 2019, arXiv 1901.09321).

Four things differ from the paper. A stage has one bottleneck, not two. The outermost stage works at half the image's
side, since a CPU would spend most of its time at the whole. The critic halves by plain means. The generator ends in
Tanh, as all of raygan's do.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from raygan.models.double_backward import Conv2d, LeakyReLU
from raygan.models.gan import Generator, NetworkSettings
from raygan.models.layers import (
    DownConvolution,
    UpConvolution,
    Upsample,
    scores_of_classes,
    stage_channels,
    with_classes,
)

M = TypeVar("M", bound=nn.Module)

#: Channels of a group in the 3x3 convolutions, where their number allows it.
_GROUP = 16

#: What a bottleneck multiplies the number of channels by.
_EXPANSION = 2

#: Gain that makes up for the variance that LeakyReLU(0.2) takes away.
_GAIN = math.sqrt(2 / (1 + 0.2**2))


class ResidualGenerator(Generator):
    """A learned 4x4 px image, whose channels the latent scales, then stages that double the side."""

    def __init__(self, settings: NetworkSettings):
        super().__init__(settings)
        channels = stage_channels(settings)[::-1]
        self.basis = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.scales = _scaled(nn.Conv2d(settings.z_dim + len(settings.labels), channels[0], 1, bias=False))
        stages: list[nn.Module] = [_Bottleneck(channels[0], len(channels))]
        for wide, narrow in itertools.pairwise(channels):
            change = _scaled(nn.Conv2d(wide, narrow, 1, bias=False))
            stages += [change, Upsample(), _Bottleneck(narrow, len(channels))]
        self.stages = nn.Sequential(*stages)
        self.exit = nn.Sequential(_scaled(UpConvolution(channels[-1], 3)), nn.Tanh())

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        scales = self.scales(with_classes(latents, classes, len(self.labels)))
        images: Tensor = self.exit(self.stages(self.basis * scales))
        return images


class ResidualCritic(nn.Module):
    """The generator's mirror image: stages that halve the side down to 4x4 px, then a score, or one per class."""

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.classes = len(settings.labels)
        channels = stage_channels(settings)
        self.entry = _scaled(DownConvolution(3, channels[0]))
        stages: list[nn.Module] = [_Bottleneck(channels[0], len(channels))]
        for narrow, wide in itertools.pairwise(channels):
            change = _scaled(Conv2d(narrow, wide, 1, bias=False))
            stages += [nn.AvgPool2d(2), change, _Bottleneck(wide, len(channels))]
        self.stages = nn.Sequential(*stages)
        self.basis = _scaled(Conv2d(channels[-1], channels[-1], 4, groups=channels[-1], bias=False))
        self.exit = _scaled(Conv2d(channels[-1], max(1, self.classes), 1, bias=False))

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        scores: Tensor = self.exit(self.basis(self.stages(self.entry(images))))
        return scores_of_classes(scores.flatten(1), classes, self.classes)


class Residual:
    """The architecture ``residual``."""

    generator = ResidualGenerator
    critic = ResidualCritic
    growth = ("stages", 3)


class _Bottleneck(nn.Module):
    """Images (N, C, H, W) plus the output of three convolutions."""

    def __init__(self, channels: int, stages: int):
        super().__init__()
        inner = channels * _EXPANSION
        groups = inner // math.gcd(inner, _GROUP)
        gain = _GAIN * stages**-0.25
        self.change = nn.Sequential(
            _scaled(Conv2d(channels, inner, 1), gain),
            LeakyReLU(0.2),
            _scaled(Conv2d(inner, inner, 3, padding=1, groups=groups), gain),
            LeakyReLU(0.2),
            _scaled(Conv2d(inner, channels, 1, bias=False), 0.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = images + self.change(images)
        return changed


def _scaled(layer: M, gain: float = 1.0) -> M:
    """The layer, with weights drawn so that its output's variance is gain**2 times its input's."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.in_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, gain / math.sqrt(inputs))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return layer
