"""Whether a critic has memorized its photos: its scores for them beside those for photos that it has never seen.

Where held-out photos score lower than training photos, and in the end like generated images, the critic knows its
photos by heart and has nothing left to teach the generator (Karras et al. 2020, arXiv 2006.06676, figure 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from raygan.data.photos import Photos
from raygan.models.gan import to_signed
from raygan.training.step import GanStep

#: Photos of each split that are scored, spread evenly over its shards.
SCORED_PHOTOS = 128

#: Shards that they are read from, at most, where a split has more than are shuffled together.
SCORED_SHARDS = 16


@dataclass(frozen=True)
class Scored:
    """The photos of a split that are scored; they are read when they are first needed, and kept."""

    photos: Photos

    @cached_property
    def images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels, uint8 (n, 3, S, S), and classes (n,)."""
        few = len(self.photos.rows) <= self.photos.mixed
        places = self.photos.spread(SCORED_PHOTOS, len(self.photos.rows) if few else SCORED_SHARDS)
        return torch.from_numpy(self.photos.pixels(places)), torch.from_numpy(self.photos.classes(places))


def splits(train: Photos, held_out: Photos) -> dict[str, Scored]:
    """Photos by the name of their mean score, without a split that has none."""
    photos = {"score_train": train, "score_held_out": held_out}
    return {name: Scored(some) for name, some in photos.items() if len(some)}


def mean_scores(step: GanStep, scored: dict[str, Scored]) -> dict[str, float]:
    """The critic's mean score of each split, by its name; photos are not augmented."""
    found = {}
    for name, split in scored.items():
        pixels, classes = split.images
        given = classes if step.networks.labels else None
        found[name] = float(step.scores(to_signed(pixels), given).mean())
    return found
