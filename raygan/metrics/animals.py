"""Animal mass: how much of a cat or a dog an ImageNet network sees in an image.

The EfficientNets of `raygan.models.features` know ImageNet's thousand classes; 5 are cats and 118 are dogs. Animal mass
is the total probability of a label's classes. It needs no real photos to compare with, and no classifier of our own,
which can only tell cats from dogs and has to call noise one of them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from raygan.errors import ConfigurationError
from raygan.models.features import HALF, Features, build_efficientnet
from raygan.models.registry import DEFAULT_FEATURES

#: ImageNet's classes of each label (first, last + 1): tabby to Egyptian cat; Chihuahua to Mexican hairless.
CLASSES = {"cat": (281, 286), "dog": (151, 269)}

#: Side in px that images are resized to.
SIZE = 160


def knows(label: str) -> bool:
    """Whether ImageNet has classes of the label."""
    return label in CLASSES


def animal_mass(
    images: Tensor, label: str, network: str = DEFAULT_FEATURES, device: torch.device | str = "cpu"
) -> Tensor:
    """Probability of the label's classes, float32 (n,) on the CPU.

    Args:
        images: uint8 (n, 3, S, S) on the CPU.
        label: one of `CLASSES`.
        network: the EfficientNet's name.
        device: where to compute.

    Raises:
        ConfigurationError: ImageNet has no classes of the label.
    """
    if label not in CLASSES:
        raise ConfigurationError(f"animal mass knows the labels {', '.join(CLASSES)}, not {label!r}")
    low, high = CLASSES[label]
    scores = _scores(network).to(torch.device(device))(images)
    return scores.softmax(1)[:, low:high].sum(1)


@functools.lru_cache(maxsize=2)
def _scores(network: str) -> Features:
    """The network with its classifier, whose scores of ImageNet's classes are taken for features."""
    half = [HALF] * 3
    return Features(network, build_efficientnet(network), size=SIZE, dim=1000, mean=half, deviation=half)
