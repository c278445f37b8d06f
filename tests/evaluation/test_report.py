"""The page of a report card, and what it warns about."""

from __future__ import annotations

import torch

from raygan.evaluation import report
from raygan.evaluation.collect import ImageSet
from raygan.evaluation.verdict import Score, Verdict

IMAGES = ImageSet(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), {"net": torch.zeros(9, 4)})


def verdict(candidate, agreement):
    scores = [Score("agreement", "agreement9", agreement)]
    return Verdict(candidate, "cat", IMAGES, scores, torch.zeros(9, dtype=torch.int64), torch.full((9,), agreement))


def flags(about, *candidates):
    return " ".join(report.flags([verdict(name, 1.0) for name in candidates], {"cat": IMAGES}, 9, about))


def test_a_baseline_as_good_as_the_best_is_not_the_best():
    verdicts = [verdict("real photos", 1.0), verdict("good", 1.0), verdict("poor", 0.5), verdict("noise", 1.0)]
    record = {"flags": [], "candidates": {}, "real_photos": {"cat": 9}, "decided": {}}
    page = report.page("card", record, verdicts, {"cat": IMAGES})
    assert '<td>1</td><td class="best">1</td><td>0.5</td><td>1</td>' in page


def test_a_classifier_is_no_stranger_to_what_it_learned_from():
    learned = {"real": 90, "generated": 0}
    assert "the baseline is of training photos" in flags(learned, "real photos", "mine")
    assert "training photos" not in flags(learned, "mine")
    assert "training photos" not in flags({"real": 0, "generated": 90}, "real photos", "mine")
    assert "learned from generated images" in flags({"real": 9, "generated": 90, "generators": "mine"}, "mine")
