"""Latents of seeds, and the way between two of them.

A seed names one image: image i of a request with seed s is the image of seed s + i, alone or among others, so a
seed copied from a grid gives that very face.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygan.gan.networks import draw_latents
from raygan.gan.step import seeded
from raygan.serve.models import Draws


def latents_of(draws: Draws, z_dim: int) -> Tensor:
    """float32 (n, z_dim) for the seeds, or for the points between seeds and ends; scaled by the truncation."""
    points = _latents(draws.seeds, z_dim)
    if draws.ends:
        points = slerp(points, _latents(draws.ends, z_dim), torch.tensor(draws.shares))
    return points * draws.truncation


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


def _latents(seeds: tuple[int, ...], z_dim: int) -> Tensor:
    drawn: dict[int, Tensor] = {}
    for seed in seeds:
        if seed not in drawn:  # a walk names the same two seeds in every frame
            drawn[seed] = draw_latents(1, z_dim, seeded(seed, 0, "sample"))
    return torch.cat([drawn[seed] for seed in seeds])
