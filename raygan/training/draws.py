"""Which random numbers a step takes, and how reals and fakes are augmented with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raygan.models.draws import Batches, Draws, ImageDraws, Kind, SerialDraws
from raygan.training.adaptive import AdaptiveShare
from raygan.training.augment import DRAWS_PER_IMAGE, augment
from raygan.training.registry import POLICIES

if TYPE_CHECKING:
    from raygan.training.settings import StepOptions

#: Draws that change reals and fakes, in the order of a batch of both.
_CHANGES = "augment reals", "augment fakes"

#: Draws that decide which of those changes are made.
_GATES = "gate reals", "gate fakes"


def step_draws(kind: Kind, batches: Batches, options: StepOptions, z_dim: int) -> tuple[ImageDraws, ImageDraws]:
    """Random numbers of the critic's steps and of the generator's, by purpose.

    Args:
        kind: of the numbers.
        batches: whose numbers are drawn.
        options: of the step.
        z_dim: length of the latent vector.
    """
    latents = {"latents": z_dim}
    changes = dict.fromkeys(_CHANGES, DRAWS_PER_IMAGE) if options.augment else {}
    if options.augment_target:
        changes |= dict.fromkeys(_GATES, len(POLICIES))
    flips = {"mirror": 1} if options.mirror else {}
    if kind == "philox":
        return (
            Draws(batches, "critic", normals=latents, uniforms={"mix": 1, **changes, **flips}),
            Draws(batches, "generator", normals=latents, uniforms=changes, every=options.n_critic),
        )
    return (
        SerialDraws(batches, {"critic": {**latents, "mix": 1, **changes}, "mirror": flips}, normals=latents),
        SerialDraws(batches, {"generator": {**latents, **changes}}, normals=latents),
    )


def augment_pair(
    reals: Tensor, fakes: Tensor, draws: dict[str, Tensor], options: StepOptions, adaptive: AdaptiveShare | None
) -> tuple[Tensor, Tensor]:
    """Reals and fakes (n, 3, S, S), augmented alike by a step's draws."""
    if not options.augment:
        return reals, fakes
    both = torch.cat([draws[change] for change in _CHANGES])
    gates = adaptive.gates(torch.cat([draws[gate] for gate in _GATES])) if adaptive else None
    first, second = augment(torch.cat([reals, fakes]), both, options.augment, gates).split(len(reals))
    return first, second
