"""The training loop of a classifier, the same under Ray Train and Ray Tune.

`ClassifierLoop` feeds global batches from blocks in the object store to a `ClassifierStep`. To validate, the ranks
share out the validation photos and score all of them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from raygan.classifier.step import ClassifierStep
from raygan.data.batches import BatchStream
from raygan.data.photos import Photos
from raygan.metrics.classification import score
from raygan.models.hardware import on_device

#: Validation photos that a classifier is scored on, spread evenly over the shards.
MOST_VALIDATED = 20_000

#: Seconds between two progress reports.
_PROGRESS_S = 2.0

#: Seconds, about, between two looks at the clock that ranks share.
_LOOK_S = 5.0


class ClassifierLoop:
    """Trains and validates one classifier on this rank.

    Attributes:
        validated: shard and row of the validation photos that it is scored on, int64 (n, 2).
    """

    def __init__(self, step: ClassifierStep, images: Photos, validation: Photos, on_progress: Callable[[int], None]):
        """Set up the stream of batches.

        Args:
            step: the classifier and its optimizer.
            images: what to train on.
            validation: held-out photos.
            on_progress: called every two seconds with the number of images seen so far.
        """
        self.step, self.validation, self._on_progress = step, validation, on_progress
        self.validated = validation.spread(MOST_VALIDATED)
        self.stream = BatchStream(images, step.options.batch_size, step.options.seed, step.share)
        self._sums: dict[str, float] = {}
        self._seen, self._seconds, self._look_every = 0, 0.0, 1

    @property
    def is_settling(self) -> bool:
        """Whether the learning rate has fallen below half its peak; losses before that say little about the end."""
        seen, total = self.step.images_seen, self.step.total
        return 2 * seen > total and self.step.rate(seen) < 0.5

    def train_until(self, images: int, minutes: float = math.inf) -> None:
        """Train until more images are seen in all, or the time is up. All ranks stop after the same batch.

        Args:
            images: to have been seen at the end, by all ranks together.
            minutes: after which to stop before, give or take a few seconds.
        """
        began = reported = time.monotonic()
        first = self.step.batches
        sums: dict[str, Tensor] = {}
        for pixels, targets in on_device(self.stream.starting_at(first), self.step.device):
            for name, value in self.step.step(pixels, targets).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            if time.monotonic() - reported > _PROGRESS_S:
                self._on_progress(self.step.images_seen)
                reported = time.monotonic()
            if self.step.images_seen >= images or self._time_is_up(began, self.step.batches - first, minutes):
                break
        self._on_progress(self.step.images_seen)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)  # waits for the device
        self._seen += (self.step.batches - first) * self.step.options.batch_size
        self._seconds += time.monotonic() - began

    def means(self) -> dict[str, float]:
        """Mean `loss` and `train_accuracy` since the last call, and `images_per_second`. A collective call."""
        totals = self._sum_over_ranks(torch.tensor(list(self._sums.values()), dtype=torch.float64))
        found = {name: float(total) / self._seen for name, total in zip(self._sums, totals, strict=True)}
        found["images_per_second"] = self._seen / self._seconds
        self._sums, self._seen, self._seconds = {}, 0, 0.0
        return found

    def validate(self) -> dict[str, float]:
        """`raygan.metrics.classification.score` on the validation photos, the same on every rank."""
        return score(*self.predict())

    def predict(self) -> tuple[Tensor, Tensor]:
        """Probabilities (n, labels) and classes (n,) of the photos in `validated`, the same on every rank.

        They are in that order on a single rank.
        """
        self.step.average_statistics()
        probabilities, targets = [], []
        for pixels, classes in self.validation.parts(self.validated):
            rows = self.step.share.rows(len(pixels))
            probabilities.append(self.step.probabilities(torch.from_numpy(pixels[rows])))
            targets.append(torch.from_numpy(classes[rows]))
        ranks = self._gather((torch.cat(probabilities), torch.cat(targets)))
        return torch.cat([own for own, _ in ranks]), torch.cat([own for _, own in ranks])

    def _time_is_up(self, began: float, batches: int, minutes: float) -> bool:
        """Whether this many minutes have passed on the first rank. A collective call every few seconds."""
        if minutes == math.inf or batches % self._look_every:
            return False
        passed = 0.0 if self.step.share.rank else time.monotonic() - began
        seconds = float(self._sum_over_ranks(torch.tensor(passed, dtype=torch.float64)))
        pause = min(_LOOK_S, 3 * minutes)  # at most a twentieth of them
        self._look_every = max(1, round(pause * batches / max(seconds, 1e-9)))
        return seconds >= 60 * minutes

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.step.share.world_size > 1:
            values = values.to(self.step.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def _gather(self, own: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        if self.step.share.world_size == 1:
            return [own]
        gathered: list[tuple[Tensor, Tensor] | None] = [None] * self.step.share.world_size
        torch.distributed.all_gather_object(gathered, own)
        return [pair for pair in gathered if pair is not None]
