"""A run's pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from raygan.models.gan import NetworkSettings, build_generator
from raygan.training import plots
from raygan.training.registry import OBJECTIVES


def picture(content):
    return Image.open(io.BytesIO(content))


def test_nothing_to_show_is_no_picture(tmp_path):
    assert plots.curves([{"images": 8, "minutes": 1.0}], {}) == b""
    assert plots.progress(str(tmp_path)) == b""


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_an_objectives_terms_are_drawn_in_its_panels(objective):
    panels = OBJECTIVES.load(objective).panels
    records = [{"images": images, **dict.fromkeys(panels, 1.0)} for images in (8, 16)]
    drawn = picture(plots.curves(records, panels))
    each = picture(plots.curves([{"images": 8, "critic_loss": 1.0}], {})).width
    assert drawn.width == pytest.approx(each * len(set(panels.values())), rel=0.05)


def test_the_critics_scores_of_both_splits_share_a_panel():
    one, both = (
        picture(plots.curves([{"images": images, **dict.fromkeys(names, 1.0)} for images in (8, 16)], {}))
        for names in (["critic_loss"], ["score_train", "score_held_out"])
    )
    assert both.width == pytest.approx(one.width, rel=0.05)


def test_a_term_may_have_a_panel_of_its_own():
    records = [{"images": 8, "critic_loss": 1.0, "margin": 2.0}]
    assert picture(plots.curves(records, {"margin": "margins"})).width > picture(plots.curves(records, {})).width


@pytest.mark.parametrize("labels", [(), ("cat", "dog")])
def test_walks_have_a_row_each(labels):
    generator = build_generator(NetworkSettings(image_size=32, z_dim=4, width=2, labels=labels)).eval()
    drawn = np.asarray(picture(plots.interpolation(generator, rows=2, columns=3)))
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(1.5, abs=0.1)
