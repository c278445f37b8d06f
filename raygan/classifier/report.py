"""How the chosen classifier does on the validation photos: metrics and pictures for MLflow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raygan import charts, pictures, tracking
from raygan.data.batches import Photos
from raygan.metrics.classification import confusion, score
from raygan.models.googlenet import Classifier

#: Misclassified photos on the contact sheet.
_SHOWN = 48


def log_validation(classifier: Classifier, validation: Photos, log: tracking.Run, images: int) -> dict[str, float]:
    """Log the classifier's metrics, confusion, calibration and worst mistakes.

    Args:
        classifier: the one to register.
        validation: held-out photos.
        log: the run in MLflow.
        images: training images seen, MLflow's step.

    Returns:
        The metrics, with the number of photos.
    """
    blocks = [validation.block(number) for number in range(len(validation.rows))]
    photos = torch.from_numpy(np.concatenate([pixels for pixels, _ in blocks]))
    targets = torch.from_numpy(np.concatenate([classes for _, classes in blocks]))
    probabilities = classifier.probabilities(photos)
    metrics = score(probabilities, targets)
    log.log_metrics({f"best_{name}": value for name, value in metrics.items()}, images)
    log.log_bytes(charts.confusion(confusion(probabilities, targets), classifier.labels), "pictures/confusion.png")
    log.log_bytes(charts.calibration(probabilities, targets), "pictures/calibration.png")
    sheet = _mistakes(classifier.labels, photos, probabilities, targets)
    if sheet is not None:
        log.log_bytes(sheet, "pictures/misclassified.png")
    return metrics | {"validation_photos": float(len(photos))}


def _mistakes(labels: tuple[str, ...], photos: Tensor, probabilities: Tensor, targets: Tensor) -> bytes | None:
    """A contact sheet of misclassified photos, the most confident first; None if there are none."""
    predicted = probabilities.argmax(1)
    wrong = torch.nonzero(predicted != targets).flatten()
    if not len(wrong):
        return None
    own = probabilities[wrong].gather(1, targets[wrong][:, None]).flatten()
    wrong = wrong[own.argsort()][:_SHOWN]
    captions = [
        f"{labels[int(targets[i])]}? {labels[int(predicted[i])]} {float(probabilities[i].max()):.0%}" for i in wrong
    ]
    return pictures.png(pictures.captioned(photos[wrong], captions))
