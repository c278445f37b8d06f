"""Generators and critics as the rest of raygan sees them, whatever their architecture, and the generator's files.

A *generator folder* is what checkpoints, the registry and the service hold:

    generator.json          format version, the `NetworkSettings`, and what the trainer says about it
    generator.safetensors   weights and batch statistics
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raygan.errors import ConfigurationError, RayganError
from raygan.models.registry import ARCHITECTURES
from raygan.models.weights import check_fits, fill, load_description, load_tensors, save_description, save_tensors

CriticNorm = Literal["instance", "batch", "none"]

IMAGE_SIZES = (32, 64, 128, 256)

#: A stranger's JSON file must not make a network that fills the memory.
MAX_Z_DIM, MAX_WIDTH = 4096, 1024

#: Format version of the JSON files.
VERSION = 1


@dataclass(frozen=True)
class NetworkSettings:
    """The settings of a generator and its critic, stored beside their weights.

    Attributes:
        image_size: side of the square images in px: 32, 64, 128 or 256.
        z_dim: length of the latents, 1 to 4096.
        width: channels of the block next to the image, 1 to 1024.
        critic_norm: "instance" normalizes the critic per image; "batch" over the batch, in all blocks but the first
            (DCGAN's discriminator); "none" not at all, and the critic sees brightness and contrast as they are.
        labels: the classes of a conditional generator; empty for a generator without classes.
        architecture: a name in `ARCHITECTURES`.
    """

    image_size: int = 64
    z_dim: int = 200
    width: int = 64
    critic_norm: CriticNorm = "instance"
    labels: tuple[str, ...] = ()
    architecture: str = "dcgan"

    def __post_init__(self) -> None:
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size must be one of {IMAGE_SIZES}, not {self.image_size}")
        for name, value, most in (("z_dim", self.z_dim, MAX_Z_DIM), ("width", self.width, MAX_WIDTH)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value!r}")
        if self.critic_norm not in ("instance", "batch", "none"):
            raise ValueError(f"critic_norm must be instance, batch or none, not {self.critic_norm!r}")
        object.__setattr__(self, "labels", tuple(self.labels))  # JSON has lists only
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be empty, or two or more different names, not {self.labels}")
        known = ARCHITECTURES.names()
        if self.architecture not in known:
            raise ValueError(
                f"architecture must be one of {', '.join(known)}, not {self.architecture!r}; install the package that "
                f"offers it"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


class Generator(nn.Module):
    """Base class of generators: latents to images.

    Subclasses build their layers after ``super().__init__(settings)`` and define `forward`.
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = settings

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes by number; empty for an unconditional generator."""
        return self.settings.labels

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """Draw images.

        Args:
            latents: standard normal (N, z_dim).
            classes: int64 (N,), below the number of labels; ignored by an unconditional generator.

        Returns:
            Images (N, 3, S, S) in [-1, 1].
        """
        raise NotImplementedError


def build_generator(settings: NetworkSettings) -> Generator:
    """A generator with random weights, drawn from torch's global generator.

    Raises:
        ConfigurationError: the architecture's package can't be imported, or builds something else.
    """
    generator = ARCHITECTURES.load(settings.architecture).generator(settings)
    if not isinstance(generator, Generator):
        raise ConfigurationError(f"architecture {settings.architecture!r}: its generator must subclass Generator")
    return generator


def build_critic(settings: NetworkSettings) -> nn.Module:
    """A critic with random weights, drawn from torch's global generator.

    Its `forward` takes images (N, 3, S, S) in [-1, 1] and classes (N,) or None, and gives unbounded scores (N,), higher
    for images that look real.

    Raises:
        ConfigurationError: the architecture's package can't be imported.
    """
    return ARCHITECTURES.load(settings.architecture).critic(settings)


def draw_latents(count: int, z_dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal latents (count, z_dim), drawn on the CPU whatever the target device."""
    return torch.randn(count, z_dim, generator=generator)


def to_signed(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images 0..255 as floats in [-1, 1]."""
    return images.to(dtype).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 0..255, rounded and clipped."""
    return images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def save_generator(folder: Path, generator: Generator, about: dict[str, Any]) -> None:
    """Write a generator folder, which is made if missing.

    Args:
        folder: where to write.
        generator: on any device.
        about: JSON-ready values that `load_generator` gives back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "generator.safetensors", generator.state_dict())
    save_description(folder / "generator.json", VERSION, {"networks": generator.settings.to_dict(), "about": about})


def load_generator(folder: Path) -> tuple[Generator, dict[str, Any]]:
    """A folder's generator, on the CPU in evaluation mode, and the `about` it was saved with.

    Raises:
        RayganError: a file is missing or damaged, or has another version or architecture.
    """
    networks, description = load_networks(folder / "generator.json")
    weights = folder / "generator.safetensors"
    check_fits(lambda: build_generator(networks), weights)
    generator = build_generator(networks)
    fill(generator, load_tensors(weights), weights)
    return generator.eval(), dict(description.get("about", {}))


def load_networks(path: Path) -> tuple[NetworkSettings, dict[str, Any]]:
    """The networks that a JSON file describes, and all values of the file.

    Raises:
        RayganError: the file is missing or damaged, has another version, or describes networks that can't be built.
    """
    description = load_description(path, VERSION, kind="checkpoint")
    try:
        return NetworkSettings(**description["networks"]), description
    except (KeyError, TypeError, ValueError) as error:
        raise RayganError(f"{path} describes networks that this version can't build: {error}") from None
