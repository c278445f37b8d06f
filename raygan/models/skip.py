"""DCGAN with FastGAN's improvements to generators for small photo sets (Liu et al. 2021, arXiv 2101.04775).

Skip-layer excitation: a coarse stage of the generator scales the channels of the stage whose side is four times as
long. So a choice made at 4x4 px, such as the color of the coat, reaches the pixels, and gradients take the short way
back. Stages double their side by nearest neighbors and a convolution, so no checkerboard shows. The critic is DCGAN's:
FastGAN's has shortcuts, too, which cost a third of the images/s.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from raygan.models.dcgan import DCGANCritic, draw_small
from raygan.models.gan import Generator, NetworkSettings
from raygan.models.layers import UpConvolution, stage_channels, with_classes


class SkipGenerator(Generator):
    """Blocks of a convolution that doubles the side, BatchNorm2d and ReLU, scaled by the block two before them."""

    def __init__(self, settings: NetworkSettings):
        super().__init__(settings)
        channels = stage_channels(settings)[::-1]
        inputs = settings.z_dim + len(settings.labels)
        self.entry = nn.Sequential(
            nn.ConvTranspose2d(inputs, channels[0], 4, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(UpConvolution(wide, narrow, bias=False), nn.BatchNorm2d(narrow), nn.ReLU())
            for wide, narrow in itertools.pairwise(channels)
        )
        self.excitations = nn.ModuleList(
            _Excitation(coarse, fine) for coarse, fine in zip(channels, channels[2:], strict=False)
        )
        self.exit = nn.Sequential(UpConvolution(channels[-1], 3), nn.Tanh())
        self.apply(draw_small)

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        stages: list[Tensor] = [self.entry(with_classes(latents, classes, len(self.labels)))]
        for number, block in enumerate(self.blocks, start=1):
            stage = block(stages[-1])
            if number >= 2:
                stage = stage * self.excitations[number - 2](stages[number - 2])
            stages.append(stage)
        images: Tensor = self.exit(stages[-1])
        return images


class Skip:
    """The architecture ``skip``."""

    generator = SkipGenerator
    critic = DCGANCritic
    growth = ("blocks", 1)


class _Excitation(nn.Sequential):
    """From a coarse stage (N, C, S, S) to factors (N, C', 1, 1) in [0, 2] for the channels of a finer one."""

    def __init__(self, coarse: int, fine: int):
        super().__init__(
            nn.AdaptiveAvgPool2d(4), nn.Conv2d(coarse, fine, 4), nn.LeakyReLU(0.1), nn.Conv2d(fine, fine, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        factors: Tensor = 2 * super().forward(images).sigmoid()
        return factors
