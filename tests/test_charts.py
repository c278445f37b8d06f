"""Charts of labels that look like formulas, hidden names or whole sentences, and of very many labels."""

import io

import numpy as np
import torch
from PIL import Image

from raygan import charts

ODD = ["$\\frac$", "_hidden", "x" * 200]


def test_labels_of_any_text_are_drawn():
    for content in (
        charts.confusion(torch.eye(3, dtype=torch.int64), ODD),
        charts.bars(dict.fromkeys(ODD, (0.5, 0.1)), "bars"),
        charts.histograms({name: {name: np.array([0.5])} for name in ODD}, "probability"),
    ):
        assert content.startswith(b"\x89PNG")


def test_a_confusion_matrix_of_many_labels_fits_on_a_screen():
    """With cells as large as for a few labels, 120 breeds took minutes, and a thousand labels could not be drawn."""
    content = charts.confusion(10 * torch.eye(120, dtype=torch.int64), [f"breed_{number}" for number in range(120)])
    picture = Image.open(io.BytesIO(content)).convert("L")
    assert max(picture.size) < 2500
    assert np.asarray(picture).std() > 5
