"""Lessons: what any worker does that trains a classifier, whether Ray Train or Ray Tune started it.

`Lessons` takes global batches from blocks in the object store through a `ClassifierFit`, and now and then gives it an
examination: validation photos are shared out between the ranks, and the scores are those of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierFit, FitSettings
from raygan.data.batches import BatchStream, Photos
from raygan.metrics.classification import score
from raygan.models.hardware import pick_precision

#: Seconds between two pieces of news about progress.
_NEWS_S = 2.0


class Lessons:
    """A fit, the images that it learns from, and the photos that it is examined on.

    tell: called every other second with the number of images seen so far.
    """

    def __init__(self, fit: ClassifierFit, images: Photos, validation: Photos, tell: Callable[[int], None]):
        self.fit, self.validation, self._tell = fit, validation, tell
        self.stream = BatchStream(images.rows, images.block, fit.settings.batch_size, fit.settings.seed, fit.share)

    @property
    def images_seen(self) -> int:
        """Training images seen so far, repeats included, all ranks together."""
        return self.fit.batches_done * self.fit.settings.batch_size

    @property
    def is_settling(self) -> bool:
        """Whether the learning rate has fallen to less than half: until then losses say little of where they end."""
        done, batches = self.fit.batches_done, self.fit.batches
        return 2 * done > batches and self.fit.rate(done) < 0.5

    def learn(self, until: int) -> dict[str, float]:
        """Go on until `until` batches are done: mean `loss`, `train_accuracy`, and `images_per_second`."""
        began, told, first = time.monotonic(), time.monotonic(), self.fit.batches_done
        sums: dict[str, Tensor] = {}
        for images, targets in self.stream.starting_at(first):
            if self.fit.batches_done >= until:
                break
            for name, value in self.fit.step(images, targets).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            if time.monotonic() - told > _NEWS_S:
                self._tell(self.images_seen)
                told = time.monotonic()
        self._tell(self.images_seen)
        seen = (until - first) * self.fit.settings.batch_size
        totals = _sum_over_ranks(torch.stack([value.double().cpu() for value in sums.values()]), self.fit)
        means = {name: float(total) / seen for name, total in zip(sums, totals, strict=True)}
        return means | {"images_per_second": seen / (time.monotonic() - began)}

    def examine(self) -> dict[str, float]:
        """`raygan.metrics.classification.score` of the validation photos, the same on every rank."""
        self.fit.share_statistics()
        probabilities, targets = [], []
        for number in range(len(self.validation.rows)):
            pixels, classes = self.validation.block(number)
            rows = self.fit.share.rows(len(pixels))
            probabilities.append(self.fit.probabilities(torch.from_numpy(pixels[rows].copy())))
            targets.append(torch.from_numpy(classes[rows].copy()))
        both = _from_all_ranks((torch.cat(probabilities), torch.cat(targets)), self.fit)
        return score(torch.cat([pair[0] for pair in both]), torch.cat([pair[1] for pair in both]))


def fit_settings(options: ClassifierOptions, device: torch.device, *, sync_batch_norm: bool = False) -> FitSettings:
    """The fit's settings, with precision "auto" decided for this device."""
    return FitSettings(
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        label_smoothing=options.label_smoothing,
        auxiliary_weight=options.auxiliary_weight,
        mirror=options.mirror,
        shift=options.shift,
        ema_ramp=options.ema_ramp,
        precision=pick_precision(options.precision, device),
        sync_batch_norm=sync_batch_norm,
        seed=options.seed,
    )


def _sum_over_ranks(values: Tensor, fit: ClassifierFit) -> Tensor:
    if fit.share.world_size > 1:
        values = values.to(fit.device)
        torch.distributed.all_reduce(values)
    return values.cpu()


def _from_all_ranks(own: tuple[Tensor, Tensor], fit: ClassifierFit) -> list[tuple[Tensor, Tensor]]:
    if fit.share.world_size == 1:
        return [own]
    gathered: list[tuple[Tensor, Tensor] | None] = [None] * fit.share.world_size
    torch.distributed.all_gather_object(gathered, own)
    return [pair for pair in gathered if pair is not None]
