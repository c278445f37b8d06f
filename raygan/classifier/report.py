"""How the chosen classifier does on the validation photos: metrics and pictures for MLflow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raygan import charts, pictures, tracking
from raygan.classifier.loop import MOST_VALIDATED
from raygan.data.photos import Photos
from raygan.metrics.classification import confusion, score
from raygan.models.googlenet import Classifier

#: Misclassified photos on the contact sheet.
_SHOWN = 48


def log_validation(classifier: Classifier, validation: Photos, log: tracking.Run, images: int) -> dict[str, float]:
    """Log the classifier's metrics, confusion, calibration and worst mistakes.

    Args:
        classifier: the one to register.
        validation: held-out photos that did not choose it, if there are enough.
        log: the run in MLflow.
        images: training images that it has seen, MLflow's step.

    Returns:
        The metrics, with the number of photos.
    """
    places = validation.spread(MOST_VALIDATED)
    found = [
        (classifier.probabilities(torch.from_numpy(pixels)), torch.from_numpy(classes))
        for pixels, classes in validation.parts(places)
    ]
    probabilities, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    metrics = score(probabilities, targets)
    log.log_metrics({f"best_{name}": value for name, value in metrics.items()}, images)
    log.log_bytes(charts.confusion(confusion(probabilities, targets), classifier.labels), "pictures/confusion.png")
    log.log_bytes(charts.calibration(probabilities, targets), "pictures/calibration.png")
    sheet = _mistakes(classifier.labels, validation, places, probabilities, targets)
    if sheet is not None:
        log.log_bytes(sheet, "pictures/misclassified.png")
    return metrics | {"validation_photos": float(len(places))}


def _mistakes(
    labels: tuple[str, ...], validation: Photos, places: np.ndarray, probabilities: Tensor, targets: Tensor
) -> bytes | None:
    """A contact sheet of misclassified photos, the most confident first; None if there are none."""
    predicted = probabilities.argmax(1)
    wrong = torch.nonzero(predicted != targets).flatten()
    if not len(wrong):
        return None
    own = probabilities[wrong].gather(1, targets[wrong][:, None]).flatten()
    wrong = wrong[own.argsort()][:_SHOWN]
    captions = [
        f"{labels[int(targets[i])]}?\n{float(probabilities[i].max()):.0%} {labels[int(predicted[i])]}" for i in wrong
    ]
    photos = validation.pixels(places[wrong.numpy()]).transpose(0, 2, 3, 1)
    return pictures.png(pictures.captioned(list(photos), captions, min(8, len(photos))))
