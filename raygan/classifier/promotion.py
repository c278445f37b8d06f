"""Whether a new classifier takes the champion's place: if it is right about more photos than chance explains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from raygan import tracking
from raygan.classifier.loop import MOST_VALIDATED
from raygan.classifier.settings import ClassifySettings
from raygan.data.photos import Photos
from raygan.errors import some
from raygan.models.googlenet import Classifier, load_classifier
from raygan.tracking.promotion import Decision, beside_champion


def decide(settings: ClassifySettings, classifier: Classifier, validation: Photos, log: tracking.Run) -> Decision:
    """Decide by the setting `promote`; "better" compares both classifiers' accuracy on the same photos.

    Args:
        settings: of the training.
        classifier: the new one, on the CPU.
        validation: held-out photos that did not choose the new one, if there are enough.
        log: the run in MLflow.
    """
    if settings.promote != "better":
        return Decision(settings.promote == "always", f"by the setting promote {settings.promote}")
    if settings.real_fraction < 1:  # it must not judge generators
        return Decision(False, "it learned from generated images")

    def compare(champion: tracking.RegisteredModel, folder: Path) -> Decision:
        rival = load_classifier(folder)
        if (classifier.labels, classifier.image_size) != (rival.labels, rival.image_size):
            new, old = (f"{some(one.labels)} at {one.image_size} px" for one in (classifier, rival))
            return Decision(False, f"it tells apart {new}, and version {champion.version} {old}")
        return _by_accuracy(_is_right(classifier, validation), _is_right(rival, validation), champion.version)

    return beside_champion(log.client, tracking.CLASSIFIER_NAME, compare)


def _by_accuracy(new: Tensor, old: Tensor, version: str) -> Decision:
    """Compare 1 for right and 0 for wrong (n,) about the same photos; the error is that of the paired difference."""
    gains = (new - old).double()
    lead = float(gains.mean())
    error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else float("inf")
    better = lead > error
    compared = "better" if better else "not better by more than the standard error"
    return Decision(
        better,
        f"its accuracy of {float(new.mean()):.2%} against {float(old.mean()):.2%} of version {version} on "
        f"{len(new)} photos is {compared} (difference {lead:+.2%}, standard error {error:.2%})",
        beaten=version,
    )


def _is_right(classifier: Classifier, photos: Photos) -> Tensor:
    right = [
        classifier.probabilities(torch.from_numpy(pixels)).argmax(1) == torch.from_numpy(classes)
        for pixels, classes in photos.parts(photos.spread(MOST_VALIDATED))
    ]
    return torch.cat(right).float()
