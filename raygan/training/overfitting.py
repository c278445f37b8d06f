"""Whether a critic has memorized its photos: its scores of them beside those of photos that it has never seen.

Where held-out photos score lower than training photos, and in the end like generated images, the critic knows its
photos by heart and has nothing left to teach the generator (Karras et al. 2020, arXiv 2006.06676, figure 1).
"""

from __future__ import annotations

import torch

from raygan.data.batches import Photos
from raygan.models.gan import to_signed
from raygan.training.step import GanStep

#: Photos of each split that are scored, spread evenly over its shards.
SCORED_PHOTOS = 128


def splits(train: Photos, held_out: Photos) -> dict[str, Photos]:
    """Photos by the name of their mean score, without a split that has none."""
    photos = {"score_train": train, "score_held_out": held_out}
    return {name: some for name, some in photos.items() if len(some)}


def mean_scores(step: GanStep, photos: dict[str, Photos]) -> dict[str, float]:
    """The critic's mean score of each split, by its name; photos are not augmented."""
    found = {}
    for name, split in photos.items():
        places = split.spread(SCORED_PHOTOS)
        classes = torch.from_numpy(split.classes(places)) if step.networks.labels else None
        images = to_signed(torch.from_numpy(split.pixels(places)))
        found[name] = float(step.scores(images, classes).mean())
    return found
