"""Latents of seeds, the way between two of them, and the images of latents.

A seed names one image, wherever it is asked for: image i of a set with seed s is the image of seed s + i, alone or
among others, so that a seed copied from a grid gives that very face.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from raygan.models.gan import Generator, draw_latents, to_uint8

#: Images that go through a generator at a time.
_AT_ONCE = 64


def latents_of(seeds: Iterable[int], z_dim: int) -> Tensor:
    """float32 (n, z_dim), standard normal, one for each seed."""
    drawn: dict[int, Tensor] = {}
    rows = []
    for seed in seeds:
        if seed not in drawn:  # a walk names the same two seeds in every frame
            drawn[seed] = draw_latents(1, z_dim, seeded(seed, 0, "sample"))
        rows.append(drawn[seed])
    return torch.cat(rows)


def slerp(starts: Tensor, ends: Tensor, shares: Tensor) -> Tensor:
    """Points (n, z) on the arcs from starts (n, z) to ends (n, z), `shares` (n,) in [0, 1] of the way.

    Directions move along the great circle and lengths evenly (White 2016, arXiv 1609.04468): a straight line would
    leave the shell that normal latents lie on, and the generator has seen nothing from inside it.
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
    return torch.where(sines > 1e-4, arc, straight)  # (nearly) the same or opposite directions have no one arc


def images_of(generator: Generator, latents: Tensor, classes: Tensor | None = None) -> Tensor:
    """uint8 images (n, 3, S, S) of latents (n, z_dim) and, for a conditional generator, classes (n,).

    The generator is in evaluation mode, on the latents' device.
    """
    parts = torch.arange(len(latents)).split(_AT_ONCE)
    with torch.inference_mode():
        return torch.cat(
            [to_uint8(generator(latents[part], None if classes is None else classes[part])) for part in parts]
        )


def seeded(seed: int, number: int, purpose: str) -> torch.Generator:
    """A CPU random generator of its own for each (seed, number, purpose)."""
    entropy = [seed, number, *purpose.encode()]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
