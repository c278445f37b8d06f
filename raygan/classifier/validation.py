"""Which validation photos choose a training's best epoch, and which measure it.

The lowest of several noisy losses flatters its epoch on the photos that chose it. So half of the validation photos
choose, and what is reported, and what decides about promotion, is measured on the other half.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from raygan.classifier.loop import MOST_VALIDATED
from raygan.data.photos import Photos
from raygan.training.monitor import held_back


def split_validation(validation: Photos) -> tuple[Photos, Photos]:
    """The photos that choose, and those that measure: every second one of each label, the same each time.

    They are the same photos, with a warning, where a half would lack a label or have too few.

    Args:
        validation: held-out real photos.
    """
    places = validation.spread(2 * MOST_VALIDATED)
    classes = validation.classes(places)
    measures = held_back(torch.from_numpy(classes)).numpy()
    labels = np.unique(classes)
    if not all(np.array_equal(np.unique(classes[half]), labels) for half in (measures, ~measures)):
        print(
            f"warning: the result will only be measured on the {len(places)} validation photos that choose its epoch, "
            f"too few to halve: prepare more photos of each label, or a larger --validation share",
            file=sys.stderr,
        )
        return validation, validation
    numbers = validation.numbers(places)
    return validation.only(numbers[~measures]), validation.only(numbers[measures])
