"""A training's snapshots: samples of fixed latents beside fixed photos, which show its progress."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from raygan import pictures
from raygan.data.photos import Photos
from raygan.models.gan import draw_latents, to_uint8
from raygan.models.latents import seeded
from raygan.training.step import GanStep

#: Images in each half of a grid, and in a row of it.
GRID_IMAGES, GRID_COLUMNS = 64, 8


@dataclass(frozen=True)
class Snapshots:
    """What a training looks like.

    Attributes:
        step: of the training; its EMA draws the samples.
        photos: the training photos.
        seed: of the training.
    """

    step: GanStep
    photos: Photos
    seed: int

    def png(self) -> bytes:
        """A grid of photos beside a grid of samples, as a PNG file."""
        kimg = self.step.images_seen / 1000
        fakes = to_uint8(self.samples(GRID_IMAGES)).cpu()
        panels = [("real", self._reals), (f"generated, {kimg:.3g} kimg", fakes)]
        return pictures.png(pictures.side_by_side(panels, GRID_COLUMNS))

    def samples(self, count: int) -> torch.Tensor:
        """Samples (count, 3, S, S) in [-1, 1] of fixed latents, of each class in turn."""
        networks = self.step.networks
        latents = draw_latents(count, networks.z_dim, seeded(self.seed, 0, "grid"))
        classes = torch.arange(count) % len(networks.labels) if networks.labels else None
        return self.step.sample(latents, classes)

    @cached_property
    def _reals(self) -> torch.Tensor:
        """Photos (GRID_IMAGES, 3, S, S), uint8, spread evenly over the shards, or over a few if there are many."""
        photos = self.photos
        few = len(photos.rows) if len(photos.rows) <= photos.mixed else GRID_COLUMNS
        return torch.from_numpy(photos.pixels(photos.spread(GRID_IMAGES, few)))
