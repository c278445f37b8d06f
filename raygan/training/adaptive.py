"""Adaptive augmentation (Karras et al. 2020, arXiv 2006.06676, section 3.1).

Augmentation keeps a critic from memorizing its photos, and hides part of what it should judge. So only a share of the
images is changed: the share rises while the critic is more certain of training photos than it should be, and falls
otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygan.models.distributed import Share

#: Images in which the share can rise from 0 to 1. The paper's half a million suits trainings of many millions.
ADAPT_IMAGES = 100_000

#: Batches between two decisions.
EVERY = 4


class AdaptiveShare:
    """The share of images that each policy changes.

    Attributes:
        state: float32 (2,): the share, and the certainty summed since the last decision.
    """

    def __init__(self, target: float, batch_size: int, share: Share, device: torch.device):
        """Start without augmentation.

        Args:
            target: the critic's certainty to keep, in [0, 1].
            batch_size: images in a global batch.
            share: this rank's.
            device: of the state, for which the host never waits.
        """
        self._target, self._batch_size, self._share = target, batch_size, share
        self.state = torch.zeros(2, device=device)

    def decides_after(self, batch: int) -> bool:
        """Whether the share is updated after global batch `batch`: after every fourth."""
        return (batch + 1) % EVERY == 0

    def update(self, certainty: Tensor, *, decide: bool) -> None:
        """Take note of a batch. A collective call.

        Args:
            certainty: of this rank's training photos (n,), each -1, 0 or 1: the sign of the critic's verdict.
            decide: whether to update the share.
        """
        total = certainty.sum()
        if self._share.world_size > 1:
            torch.distributed.all_reduce(total)
        self.state[1] += total
        if decide:
            images = EVERY * self._batch_size
            too_certain = torch.sign(self.state[1] / images - self._target)
            self.state[0] = (self.state[0] + too_certain * (images / ADAPT_IMAGES)).clamp(0, 1)
            self.state[1].zero_()

    def gates(self, draws: Tensor) -> Tensor:
        """Which images each policy changes: bool, like `draws`, which are uniform in [0, 1)."""
        return draws < self.state[0]
