"""Generators and critics: convolutional stacks that double or halve the image at every block.

A network for images of S pixels has log2(S) - 2 blocks and an exit layer on each side: five blocks at
128 px, four at 64 px. Block k of the critic (from the image inwards) has ``width * 2**k`` channels, at
most ``16 * width``; the generator mirrors it.

Sources: Radford et al. 2015 (DCGAN, arXiv 1511.06434) for the generator and the batch-normalised
discriminator; Gulrajani et al. 2017 (WGAN-GP, arXiv 1704.00028) for a critic without batch statistics,
since the gradient penalty is defined per image. Conditioning as in Mescheder et al. 2018 (arXiv 1801.04406): the
generator is given the class beside the latent, the critic has one score for each class.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from raygan.errors import RayganError
from raygan.models.double_backward import InstanceNorm2d, LeakyReLU
from raygan.models.weights import fill, load_description, load_tensors, save_description, save_tensors

CriticNorm = Literal["instance", "batch", "none"]

Norm = type[nn.BatchNorm2d] | type[InstanceNorm2d]

IMAGE_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True)
class NetworkSettings:
    """What a generator and its critic are built from; stored beside their weights.

    image_size: side of the square image in pixels, one of 32, 64, 128, 256.
    z_dim: length of the latent vector, at least 1.
    width: channels of the block next to the image, at least 1.
    critic_norm: "instance" normalises every critic block per image; "batch" normalises all but the first
        over the batch (DCGAN's discriminator); "none" normalises nothing, and the critic sees brightness
        and contrast as they are.
    labels: classes that one conditional generator draws, by name; empty for a generator without classes.
    """

    image_size: int = 64
    z_dim: int = 200
    width: int = 64
    critic_norm: CriticNorm = "instance"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size must be one of {IMAGE_SIZES}, not {self.image_size}")
        if self.z_dim < 1 or self.width < 1:
            raise ValueError("z_dim and width must be at least 1")
        if self.critic_norm not in ("instance", "batch", "none"):
            raise ValueError(f"critic_norm must be instance, batch or none, not {self.critic_norm!r}")
        object.__setattr__(self, "labels", tuple(self.labels))  # JSON has lists only
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be none, or two or more different ones, not {self.labels}")

    def channels(self) -> list[int]:
        """Channels of each block, from the image inwards."""
        blocks = int(math.log2(self.image_size)) - 2
        return [self.width * min(2**k, 16) for k in range(blocks)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Generator(nn.Module):
    """Latents (N, z_dim), and classes (N,) int64 if it has `labels`, to images (N, 3, S, S) in (-1, 1).

    Blocks of ConvTranspose2d, BatchNorm2d and ReLU; the first projects the latent to 4x4, each further
    one doubles the side; the exit is ConvTranspose2d and Tanh.
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = settings
        channels = settings.channels()[::-1]
        inputs = settings.z_dim + len(settings.labels)
        blocks: list[nn.Module] = [_generator_block(inputs, channels[0], stride=1, padding=0)]
        for wide, narrow in itertools.pairwise(channels):
            blocks.append(_generator_block(wide, narrow, stride=2, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.exit = nn.Sequential(nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh())
        self.apply(_init_dcgan)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes it draws, in the order of their numbers; empty if it is unconditional."""
        return self.settings.labels

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        if self.labels:
            if classes is None:
                raise ValueError(f"a conditional generator needs classes, numbers below {len(self.labels)}")
            latents = torch.cat([latents, _one_hot(classes, len(self.labels), latents)], 1)
        images: Tensor = self.exit(self.blocks(latents[:, :, None, None]))
        return images


class Critic(nn.Module):
    """Images (N, 3, S, S) in [-1, 1] to unbounded scores (N,); higher means more real.

    Blocks of Conv2d, a norm and LeakyReLU(0.2), each halving the side down to 4x4; the exit is a Conv2d
    to one number, or one for each class, of which the image's class picks its own. There is no sigmoid:
    DCGAN's belongs to its loss, for numerical stability.
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = settings
        channels = settings.channels()
        norms: dict[str, Norm | None] = {"instance": InstanceNorm2d, "batch": nn.BatchNorm2d, "none": None}
        norm = norms[settings.critic_norm]
        first_norm = None if norm is nn.BatchNorm2d else norm
        blocks: list[nn.Module] = [_critic_block(3, channels[0], first_norm)]
        for narrow, wide in itertools.pairwise(channels):
            blocks.append(_critic_block(narrow, wide, norm))
        self.blocks = nn.Sequential(*blocks)
        self.exit = nn.Conv2d(channels[-1], max(1, len(settings.labels)), 4, 1, 0)
        self.apply(_init_he if norm is None else _init_dcgan)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        scores: Tensor = self.exit(self.blocks(images)).flatten(1)
        if self.settings.labels:
            if classes is None:
                raise ValueError(f"a conditional critic needs classes, numbers below {len(self.settings.labels)}")
            # A product, not an index: its second derivative is as fast as its first.
            scores = (scores * _one_hot(classes, scores.shape[1], scores)).sum(1, keepdim=True)
        return scores.flatten()


def _one_hot(classes: Tensor, count: int, like: Tensor) -> Tensor:
    """Classes (N,) as rows (N, count) of one 1 each."""
    return functional.one_hot(classes.to(like.device), count).to(like.dtype)


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


def _init_dcgan(module: nn.Module) -> None:
    """DCGAN's initialisation (section 4): weights from N(0, 0.02), norm scales from N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _init_he(module: nn.Module) -> None:
    """He et al. 2015 for LeakyReLU(0.2): without a norm, DCGAN's small weights would fade out every score."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def draw_latents(count: int, z_dim: int, generator: torch.Generator) -> Tensor:
    """`count` standard normal latents (count, z_dim), drawn on the CPU whatever the target device."""
    return torch.randn(count, z_dim, generator=generator)


def to_signed(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images 0..255 as floats in [-1, 1]."""
    return images.to(dtype).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 0..255, rounded and clipped."""
    return images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


VERSION = 1


def save_generator(folder: Path, generator: Generator, about: dict[str, Any]) -> None:
    """Write `generator` into `folder` (made if missing); `about` is JSON-ready and given back on loading."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "generator.safetensors", generator.state_dict())
    save_description(folder / "generator.json", VERSION, {"networks": generator.settings.to_dict(), "about": about})


def load_generator(folder: Path) -> tuple[Generator, dict[str, Any]]:
    """The generator of a folder, on the CPU and in evaluation mode, and what was said about it.

    Raises RayganError if a file is missing, truncated, or of another version or architecture.
    """
    description = _load_json(folder / "generator.json")
    generator = Generator(_network_settings(folder / "generator.json", description))
    fill(generator, _load_tensors(folder / "generator.safetensors"), folder / "generator.safetensors")
    return generator.eval(), dict(description.get("about", {}))


def _network_settings(path: Path, description: dict[str, Any]) -> NetworkSettings:
    try:
        return NetworkSettings(**description["networks"])
    except (KeyError, TypeError, ValueError) as error:
        raise RayganError(f"{path} describes no network that this version knows: {error}") from None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    return load_tensors(path, part_of="checkpoint")


def _load_json(path: Path) -> dict[str, Any]:
    return load_description(path, VERSION, kind="checkpoint")
