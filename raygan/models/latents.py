"""Seeds to latents, walks between latents, and latents to images.

A seed stands for one image everywhere: image i of a set with seed s is the image of seed s + i, whether drawn alone or
with others. So a seed copied from a grid gives the same face.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from raygan.models.gan import Generator, draw_latents, to_uint8

#: Images that a generator draws at once.
_AT_ONCE = 64


def latents_of(seeds: Iterable[int], z_dim: int) -> Tensor:
    """Standard normal latents, float32 (n, z_dim), one per seed."""
    drawn: dict[int, Tensor] = {}
    rows = []
    for seed in seeds:
        if seed not in drawn:  # every frame of a walk has the same two seeds
            drawn[seed] = draw_latents(1, z_dim, seeded(seed, 0, "sample"))
        rows.append(drawn[seed])
    return torch.cat(rows)


def slerp(starts: Tensor, ends: Tensor, shares: Tensor) -> Tensor:
    """Points on the arcs between latents (White 2016, arXiv 1609.04468).

    Directions follow the great circle, and lengths change linearly. A straight line would leave the shell that normal
    latents lie on, and the generator has never seen points inside it.

    Args:
        starts: (n, z_dim).
        ends: (n, z_dim).
        shares: how far to go from start to end, (n,) in [0, 1].

    Returns:
        Latents (n, z_dim).
    """
    lengths = torch.stack([starts.norm(dim=1), ends.norm(dim=1)])
    cosines = (starts * ends).sum(1) / lengths.prod(0).clamp_min(1e-12)
    angles = cosines.clamp(-1, 1).acos()[:, None]
    shares = shares.to(starts)[:, None]
    straight = starts.lerp(ends, shares)
    sines = angles.sin()
    unit_starts, unit_ends = starts / lengths[0][:, None], ends / lengths[1][:, None]
    arc = (((1 - shares) * angles).sin() * unit_starts + (shares * angles).sin() * unit_ends) / sines
    arc = arc * lengths[0][:, None].lerp(lengths[1][:, None], shares)
    # There is no unique arc between (nearly) equal or opposite directions.
    return torch.where(sines > 1e-4, arc, straight)


def images_of(generator: Generator, latents: Tensor, classes: Tensor | None = None) -> Tensor:
    """Images of latents.

    Args:
        generator: in evaluation mode, on the latents' device.
        latents: (n, z_dim).
        classes: int64 (n,), for a conditional generator.

    Returns:
        uint8 (n, 3, S, S).
    """
    parts = torch.arange(len(latents)).split(_AT_ONCE)
    with torch.inference_mode():
        return torch.cat(
            [to_uint8(generator(latents[part], None if classes is None else classes[part])) for part in parts]
        )


def seeded(seed: int, number: int, purpose: str) -> torch.Generator:
    """A separate CPU random generator for each (seed, number, purpose)."""
    entropy = [seed, number, *purpose.encode()]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
