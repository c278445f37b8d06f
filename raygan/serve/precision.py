"""How far a classifier's probabilities move if it computes more coarsely: whether bfloat16 may be used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from raygan.models.googlenet import Classifier

log = logging.getLogger("raygan.serve")

#: bfloat16 is used only if no probability of a trial image moves this far; the promised limit is 0.01.
MAX_BF16_SHIFT = 0.007


def probability_shift(first: Classifier, second: Classifier, device: torch.device) -> float:
    """The largest difference between two forms' probabilities on trial images; 1 if the images can't tell.

    The images are soft random blobs, and blends of the two blobs that the first form finds most and least likely:
    where it is certain, nothing moves.
    """
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blobs = torch.nn.functional.interpolate(noise, size=first.image_size, mode="bicubic") * 60 + 127
    scores = first.probabilities(_to_uint8(blobs).to(device))[:, 0].cpu()
    fractions = torch.linspace(0, 1, 64)[:, None, None, None]
    blends = torch.lerp(blobs[scores.argmin()], blobs[scores.argmax()], fractions)
    images = _to_uint8(torch.cat([blobs, blends])).to(device)
    before = first.probabilities(images)
    if not ((before > 0.1) & (before < 0.9)).any():
        log.info("no trial image is between the labels, so the classifier computes in float32")
        return 1.0
    return float((before - second.probabilities(images)).abs().max())


def _to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)
