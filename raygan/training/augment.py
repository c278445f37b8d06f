"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): random changes of reals and fakes alike.

A critic soon memorizes a few thousand photos. If it sees only changed images, real and generated alike, and gradients
pass through the change, it learns from many more views, and the generator doesn't learn to produce the changes. All
random numbers are passed in, so a step can be repeated exactly and split between ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raygan.training.registry import POLICIES

#: Random numbers that `augment` takes for each image.
DRAWS_PER_IMAGE = 7


def augment(images: Tensor, draws: Tensor, policies: Sequence[str], gates: Tensor | None = None) -> Tensor:
    """Changed images, differentiable with respect to the images given.

    "color" shifts brightness by up to a quarter of the range, and scales saturation by 0 to 2 and contrast by 0.5 to
    1.5; "translation" moves by up to an eighth of the side and fills with zero (mid-gray); "cutout" grays out a square
    of half the side.

    Args:
        images: (N, 3, S, S) in [-1, 1].
        draws: (N, DRAWS_PER_IMAGE) uniform in [0, 1). Columns: brightness, saturation, contrast, vertical and
            horizontal translation, vertical and horizontal cutout.
        policies: any of `POLICIES`.
        gates: which images each of `POLICIES` changes, bool (N, len(POLICIES)); by default all.

    Raises:
        ValueError: a policy is unknown.
    """
    unknown = set(policies) - set(POLICIES)
    if unknown:
        raise ValueError(f"unknown augmentation {sorted(unknown)}; known: {POLICIES}")
    columns = draws.to(images.device, images.dtype)[:, :, None, None, None].unbind(1)
    for number, policy in enumerate(POLICIES):
        if policy not in policies:
            continue
        if policy == "color":
            changed = _color(images, columns[0], columns[1], columns[2])
        elif policy == "translation":
            changed = _translate(images, draws[:, 3].to(images.device), draws[:, 4].to(images.device))
        else:
            changed = _cutout(images, draws[:, 5].to(images.device), draws[:, 6].to(images.device))
        images = changed if gates is None else torch.where(gates[:, number, None, None, None], changed, images)
    return images


def mirror(images: Tensor, draws: Tensor) -> Tensor:
    """Images (N, 3, S, S), flipped left to right where `draws` (N,) in [0, 1) is below one half."""
    flip = (draws.to(images.device) < 0.5)[:, None, None, None]
    return torch.where(flip, images.flip(3), images)


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = torch.lerp(gray, images, saturation * 2)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(middle, images, contrast + 0.5)


def _translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    reach = images.shape[-1] // 8
    moved: Tensor = _Move.apply(images, *(_offsets(draw, 2 * reach + 1) - reach for draw in (down, right)), reach)
    return moved


class _Move(torch.autograd.Function):
    """Images moved by whole pixels, zero where nothing was. The gradient moves back by as much.

    torch's derivative of an index adds to places, which on GPUs means sorting them first.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, down: Tensor, right: Tensor, reach: int) -> Tensor:
        ctx.save_for_backward(down, right)
        ctx.reach, ctx.contiguous = reach, images.is_contiguous()
        padded = functional.pad(images, (reach,) * 4)
        places = reach + torch.arange(images.shape[-1], device=images.device)
        rows, columns = down[:, None] + places, right[:, None] + places
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        # Advanced indices around a slice put the channel last; move it back.
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        down, right = ctx.saved_tensors
        back: Tensor = _Move.apply(gradient, -down, -right, ctx.reach)
        return back.contiguous() if ctx.contiguous else back, None, None, None


def _cutout(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    side = images.shape[-1]
    hole = side // 2
    line = torch.arange(side, device=images.device)
    # The hole's center may be anywhere in the image, so part of the hole may lie outside.
    top = _offsets(down, side + 1)[:, None] - hole // 2
    left = _offsets(right, side + 1)[:, None] - hole // 2
    rows = (line >= top) & (line < top + hole)
    cols = (line >= left) & (line < left + hole)
    keep = ~(rows[:, :, None] & cols[:, None, :])
    return images * keep[:, None].to(images.dtype)


def _offsets(draws: Tensor, count: int) -> Tensor:
    """Whole numbers 0 .. count-1 from uniform draws."""
    return (draws * count).long().clamp(max=count - 1)
