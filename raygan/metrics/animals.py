"""Animal mass: how much of a cat or a dog an independent network sees in an image.

EfficientNet-Lite0 (see `raygan.models.features`) knows ImageNet's thousand classes: five are cats and 118 dogs. The
probability that it gives to a label's classes together needs neither reals to compare with nor our own
classifier, which only knows cats from dogs and must call noise one of them. Real cat faces have 0.87 on the mean.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from raygan.errors import ConfigurationError
from raygan.models.features import HALF, efficientnet_lite0

#: ImageNet's classes of each label (first, last + 1): tabby to Egyptian cat; Chihuahua to Mexican hairless.
CLASSES = {"cat": (281, 286), "dog": (151, 269)}

#: Side in px that images are resized to.
SIZE = 160

_BATCH = 16


class AnimalMass:
    """The network, loaded once."""

    def __init__(self) -> None:
        self._net = efficientnet_lite0().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @staticmethod
    def knows(label: str) -> bool:
        """Whether ImageNet has classes of the label."""
        return label in CLASSES

    def __call__(self, images: Tensor, label: str) -> float:
        """The mean of `per_image`; NaN of no images."""
        return float(self.per_image(images, label).mean())

    @torch.inference_mode()
    def per_image(self, images: Tensor, label: str) -> Tensor:
        """Probability of the label's classes, float32 (n,), of uint8 images (n, 3, S, S) on the CPU.

        Raises ConfigurationError for a label that ImageNet doesn't have.
        """
        if label not in CLASSES:
            raise ConfigurationError(f"animal mass knows the labels {', '.join(CLASSES)}, not {label!r}")
        low, high = CLASSES[label]
        parts = [self._net(_input(part)).softmax(1)[:, low:high].sum(1) for part in images.split(_BATCH)]
        return torch.cat(parts)


@functools.lru_cache(maxsize=1)
def animal_mass() -> AnimalMass:
    """The network, kept for the process's life."""
    return AnimalMass()


def _input(images: Tensor) -> Tensor:
    pixels = images.float()
    if pixels.shape[-1] != SIZE:
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    return ((pixels - HALF) / HALF).contiguous(memory_format=torch.channels_last)
