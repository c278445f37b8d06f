"""Charts of labels that look like formulas, hidden names or whole sentences, and of very many labels."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from raygan import charts, pictures

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


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, with their layout done."""
    drawn = []

    def keep(figure):
        figure.canvas.draw()
        drawn.append(figure)
        return b""

    monkeypatch.setattr(charts, "to_png", keep)
    return drawn


def overlaps(first, second) -> bool:
    return first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1


@pytest.mark.parametrize("labels", [["cat", "dog"], ["american_bulldog", "staffordshire_bull_terrier", "x" * 60]])
def test_names_under_a_confusion_matrix_do_not_cover_each_other(figures, labels):
    charts.confusion(torch.eye(len(labels), dtype=torch.int64), labels)
    (axes,) = figures[0].axes
    boxes = [name.get_window_extent() for name in axes.get_xticklabels()]
    assert not any(overlaps(first, second) for first, second in itertools.combinations(boxes, 2))
    assert axes.get_window_extent().width > 0.7 * 72 * len(labels)  # long names leave room for the numbers


def test_the_number_of_images_is_legible_where_no_answer_was_right(figures):
    charts.calibration(torch.tensor([[0.55, 0.45]] * 9 + [[0.95, 0.05]]), torch.tensor([1] * 9 + [0]))
    (axes,) = figures[0].axes
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors == {"9": "black", "1": "white"}  # the other one stands in its bar


def test_a_legend_of_histograms_covers_no_curve(figures):
    values = np.linspace(0, 1, 100)
    charts.histograms({"one": {"a": values, "b": values}, "two": {"b": values}}, "probability")
    (legend,) = figures[0].legends
    panels = figures[0].axes
    assert not any(overlaps(legend.get_window_extent(), axes.get_window_extent()) for axes in panels)
    colors = [[line.get_edgecolor() for line in axes.patches] for axes in panels]
    assert colors[0][1] == colors[1][0]  # b is b in both


def test_mixtures_of_one_size_stand_beside_each_other(figures):
    charts.study({"real": [(100, 0.8, 0.1)], "both": [(100, 0.8, 0.1)], "more": [(100, 0.8, 0.1)]}, {}, "accuracy")
    (axes,) = figures[0].axes
    xs = sorted(axes.transData.transform((bars[0].get_xdata()[0], 0.8))[0] for bars in axes.containers)
    assert min(np.diff(xs)) > 10


def test_a_long_caption_ends_below_its_own_picture():
    black = [np.zeros((64, 64, 3), np.uint8)] * 2
    alone, beside = (
        np.asarray(pictures.captioned(black, [caption, "dog?\n95% cat"], 2)) for caption in ("", "staffordshire " * 9)
    )
    assert not np.array_equal(alone, beside)
    assert np.array_equal(alone[:, 96:], beside[:, 96:])


@pytest.mark.parametrize("letters", [("é", "ñ"), ("к", "ш"), ("γ", "τ")])
def test_captions_in_other_alphabets_are_legible(letters):
    """A font without these letters shows the same box for each."""
    black = [np.zeros((64, 64, 3), np.uint8)]
    one, other = (np.asarray(pictures.captioned(black, [letter], 1)) for letter in letters)
    assert not np.array_equal(one, other)
    one, other = (
        np.asarray(pictures.side_by_side([(letter, torch.zeros(1, 3, 64, 64).byte())], 1)) for letter in letters
    )
    assert not np.array_equal(one, other)
