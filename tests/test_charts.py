"""Charts of labels that look like formulas, hidden names or whole sentences, and of very many labels."""

import io

import numpy as np
import pytest
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


@pytest.mark.parametrize("count", [120, 1000])
def test_a_confusion_matrix_of_many_labels_fits_on_a_screen(count):
    """With a cell as large as for a few labels, 120 took minutes, and 1,000 were more pixels than a picture can have."""
    content = charts.confusion(10 * torch.eye(count, dtype=torch.int64), [f"breed_{number}" for number in range(count)])
    picture = Image.open(io.BytesIO(content)).convert("L")
    assert max(picture.size) < 2500
    assert np.asarray(picture).std() > 5
