"""Scores of a classifier, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from raygan.metrics.classification import confusion, score

# Four images: confident and right, confident and wrong, barely right, barely wrong.
PROBABILITIES = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.55, 0.45]])
TARGETS = torch.tensor([0, 1, 1, 1])


def test_every_score_matches_its_value_by_hand():
    found = score(PROBABILITIES, TARGETS)
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((1 / 1 + 1 / 3) / 2)
    # Two of the 15 bins are in use: confidence 0.95 (two images, one right) and 0.55 (two images, one right).
    assert found["ece"] == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(0.5 - 0.55))
    # The cat scores 0.95; the dogs score 0.95 (a tie counts half), 0.45 and 0.55.
    assert found["auroc"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.95, 0.05, 0.55, 0.45))) / 4)
    assert confusion(PROBABILITIES, TARGETS).tolist() == [[1, 0], [2, 1]]


def test_labels_without_images_do_not_count():
    three = torch.cat([PROBABILITIES, torch.zeros(4, 1)], dim=1)
    found = score(three, TARGETS)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx(5 / 6)
    assert math.isnan(score(PROBABILITIES[:1], TARGETS[:1])["auroc"])
