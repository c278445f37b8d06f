"""DCGAN: convolutional stacks that double or halve the image at each block.

For images of S px, both networks have log2(S) - 2 blocks and an exit layer: five blocks at 128 px, four at 64 px.
Block k of the critic, counted from the image, has ``width * 2**k`` channels, at most ``16 * width``. The generator
mirrors the critic.

Sources: Radford et al. 2015 (DCGAN, arXiv 1511.06434) for the generator and the batch-normalized discriminator;
Gulrajani et al. 2017 (WGAN-GP, arXiv 1704.00028) for a critic without batch statistics, because the gradient penalty is
defined per image.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from raygan.models.double_backward import InstanceNorm2d, LeakyReLU
from raygan.models.gan import Generator, NetworkSettings
from raygan.models.layers import scores_of_classes, stage_channels, with_classes

Norm = type[nn.BatchNorm2d] | type[InstanceNorm2d]


class DCGANGenerator(Generator):
    """Blocks of ConvTranspose2d, BatchNorm2d and ReLU, then ConvTranspose2d and Tanh.

    The first block projects the latent to 4x4 px; each further block, and the exit, doubles the side.
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__(settings)
        channels = stage_channels(settings)[::-1]
        inputs = settings.z_dim + len(settings.labels)
        blocks: list[nn.Module] = [_generator_block(inputs, channels[0], stride=1, padding=0)]
        for wide, narrow in itertools.pairwise(channels):
            blocks.append(_generator_block(wide, narrow, stride=2, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.exit = nn.Sequential(nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh())
        self.apply(draw_small)

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        images: Tensor = self.exit(self.blocks(with_classes(latents, classes, len(self.labels))))
        return images


class DCGANCritic(nn.Module):
    """Blocks of Conv2d, a norm and LeakyReLU(0.2), then Conv2d.

    Each block halves the side, down to 4x4 px. The exit gives one score, or one per class, from which the image's class
    picks its own. There is no sigmoid: for numerical stability, DCGAN's is part of its loss.
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.classes = len(settings.labels)
        channels = stage_channels(settings)
        norms: dict[str, Norm | None] = {"instance": InstanceNorm2d, "batch": nn.BatchNorm2d, "none": None}
        norm = norms[settings.critic_norm]
        first_norm = None if norm is nn.BatchNorm2d else norm
        blocks: list[nn.Module] = [_critic_block(3, channels[0], first_norm)]
        for narrow, wide in itertools.pairwise(channels):
            blocks.append(_critic_block(narrow, wide, norm))
        self.blocks = nn.Sequential(*blocks)
        self.exit = nn.Conv2d(channels[-1], max(1, self.classes), 4, 1, 0)
        self.apply(draw_he if norm is None else draw_small)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        scores: Tensor = self.exit(self.blocks(images)).flatten(1)
        return scores_of_classes(scores, classes, self.classes)


class DCGAN:
    """The architecture ``dcgan``."""

    generator = DCGANGenerator
    critic = DCGANCritic
    growth = ("blocks", 1)


def _generator_block(channels_in: int, channels_out: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels_out, 4, stride, padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _critic_block(channels_in: int, channels_out: int, norm: Norm | None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=norm is None)]
    if norm is not None:
        layers.append(norm(channels_out))
    layers.append(LeakyReLU(0.2))
    return nn.Sequential(*layers)


def draw_small(module: nn.Module) -> None:
    """DCGAN's initialization (section 4): weights from N(0, 0.02), norm scales from N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def draw_he(module: nn.Module) -> None:
    """He et al. 2015 for LeakyReLU(0.2). Without a norm, DCGAN's small weights would shrink every score to nothing."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
