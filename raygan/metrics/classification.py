"""How good a classifier's probabilities are: accuracy, ranking and calibration, by torchmetrics.

accuracy            share of images whose likeliest label is right
balanced_accuracy   mean over the labels of each label's accuracy; guessing scores 1 / labels
auroc               mean over the labels of the area under the ROC curve, that label against the rest; NaN
                    if the images have one label only
ece                 expected calibration error in 15 equal bins of confidence (Guo et al. 2017,
                    arXiv 1706.04599): 0 is perfectly calibrated
nll                 mean negative log-likelihood, in nats
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bins of confidence in the calibration error.
BINS = 15


def score(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """The numbers above from float probabilities (n, labels) and true classes int64 (n,), n at least 1."""
    from torchmetrics.functional import classification as metrics  # takes a second to import

    labels = probabilities.shape[1]
    counts = torch.bincount(targets, minlength=labels)
    right = torch.bincount(targets[probabilities.argmax(1) == targets], minlength=labels)
    present = counts > 0
    auroc = float("nan")
    if int(present.sum()) > 1:
        auroc = float(
            metrics.multiclass_auroc(probabilities[:, present], _renumbered(targets, present), int(present.sum()))
        )
    own = probabilities.gather(1, targets[:, None]).clamp_min(1e-12)
    return {
        "accuracy": float(right.sum() / counts.sum()),
        "balanced_accuracy": float((right[present] / counts[present]).mean()),
        "auroc": auroc,
        "ece": float(metrics.multiclass_calibration_error(probabilities, targets, labels, n_bins=BINS, norm="l1")),
        "nll": float(-own.log().mean()),
    }


def confusion(probabilities: Tensor, targets: Tensor) -> Tensor:
    """int64 (labels, labels): images of label i (row) that were called j (column)."""
    from torchmetrics.functional import classification as metrics  # see `score`

    matrix: Tensor = metrics.multiclass_confusion_matrix(probabilities, targets, probabilities.shape[1])
    return matrix


def _renumbered(targets: Tensor, present: Tensor) -> Tensor:
    return (present.cumsum(0) - 1)[targets]
