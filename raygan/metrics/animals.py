"""Animal mass: how much of a cat or a dog an ImageNet network sees in an image.

The EfficientNets of `raygan.models.features` know ImageNet's thousand classes; 5 are cats and 118 are dogs. Animal mass
is the total probability of a label's classes. It needs no real photos to compare with, and no classifier of our own,
which knows only cats from dogs and has to call noise one of them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygan.errors import ConfigurationError
from raygan.models.features import HALF, build_efficientnet
from raygan.models.registry import DEFAULT_FEATURES

#: ImageNet's classes of each label (first, last + 1): tabby to Egyptian cat; Chihuahua to Mexican hairless.
CLASSES = {"cat": (281, 286), "dog": (151, 269)}

#: Side in px that images are resized to.
SIZE = 160

_BATCH, _GPU_BATCH = 16, 256


def knows(label: str) -> bool:
    """Whether ImageNet has classes of the label."""
    return label in CLASSES


@torch.inference_mode()
def animal_mass(
    images: Tensor, label: str, network: str = DEFAULT_FEATURES, device: torch.device | str = "cpu"
) -> Tensor:
    """Probability of the label's classes, float32 (n,) on the CPU.

    Args:
        images: uint8 (n, 3, S, S) on the CPU, n at least 1.
        label: one of `CLASSES`.
        network: the EfficientNet's name.
        device: where to compute.

    Raises:
        ConfigurationError: ImageNet has no classes of the label.
    """
    if label not in CLASSES:
        raise ConfigurationError(f"animal mass knows the labels {', '.join(CLASSES)}, not {label!r}")
    low, high = CLASSES[label]
    net = _network(network).to(device)
    parts = images.split(_BATCH if torch.device(device).type == "cpu" else _GPU_BATCH)
    return torch.cat([net(_input(part.to(device))).softmax(1)[:, low:high].sum(1).cpu() for part in parts])


@functools.lru_cache(maxsize=2)
def _network(name: str) -> nn.Module:
    return build_efficientnet(name).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _input(images: Tensor) -> Tensor:
    pixels = images.float()
    if pixels.shape[-1] != SIZE:
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    return ((pixels - HALF) / HALF).contiguous(memory_format=torch.channels_last)
