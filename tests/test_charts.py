"""Charts of labels that look like formulas, hidden names or whole sentences."""

import numpy as np
import torch

from raygan import charts

ODD = ["$\\frac$", "_hidden", "x" * 200]


def test_labels_of_any_text_are_drawn():
    for content in (
        charts.confusion(torch.eye(3, dtype=torch.int64), ODD),
        charts.bars(dict.fromkeys(ODD, (0.5, 0.1)), "bars"),
        charts.histograms({name: {name: np.array([0.5])} for name in ODD}, "probability"),
    ):
        assert content.startswith(b"\x89PNG")
