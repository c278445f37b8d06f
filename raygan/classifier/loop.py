"""The training loop of a classifier, the same under Ray Train and Ray Tune.

`ClassifierLoop` feeds global batches from blocks in the object store to a `ClassifierStep`. To validate, the ranks
share out the validation photos and score all of them together.
"""

from __future__ import annotations

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

    @property
    def images_seen(self) -> int:
        """Training images seen so far by all ranks, repeats included."""
        return self.step.batches_done * self.step.options.batch_size

    @property
    def is_settling(self) -> bool:
        """Whether the learning rate has fallen below half its peak; losses before that say little about the end."""
        done, batches = self.step.batches_done, self.step.batches
        return 2 * done > batches and self.step.rate(done) < 0.5

    def train_until(self, batches: int) -> dict[str, float]:
        """Train until `batches` are done in all; mean `loss` and `train_accuracy`, and `images_per_second`."""
        began, reported, first = time.monotonic(), time.monotonic(), self.step.batches_done
        sums: dict[str, Tensor] = {}
        for images, targets in on_device(self.stream.starting_at(first), self.step.device):
            if self.step.batches_done >= batches:
                break
            for name, value in self.step.step(images, targets).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            if time.monotonic() - reported > _PROGRESS_S:
                self._on_progress(self.images_seen)
                reported = time.monotonic()
        self._on_progress(self.images_seen)
        seen = (batches - first) * self.step.options.batch_size
        totals = self._sum_over_ranks(torch.stack([value.double().cpu() for value in sums.values()]))
        means = {name: float(total) / seen for name, total in zip(sums, totals, strict=True)}
        return means | {"images_per_second": seen / (time.monotonic() - began)}

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
