"""What a training dies of and what it survives."""

import math

import pytest
import torch

from raygan.training.health import Health, spread


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"critic_loss": math.nan}, "critic_loss is nan"),
        ({"generator_gradient": math.inf}, "generator_gradient is inf"),
        ({"critic_loss": -3e7}, "grown to -3e"),
    ],
)
def test_numbers_out_of_range(metrics, says):
    assert says in (Health().diagnose(metrics) or "")


def test_samples_that_differed_and_are_alike_now():
    health = Health()
    # An untrained generator's gray samples are alike, too, and no reason to stop.
    assert [health.diagnose({"sample_spread": s}) for s in (0.001, 0.002, 0.3, 0.1)] == [None] * 4
    assert "alike" in (health.diagnose({"sample_spread": 0.01}) or "")


def test_ordinary_numbers_are_fine():
    assert Health().diagnose({"critic_loss": -500.0, "wasserstein": math.nan, "kimg": 1.0}) is None


def test_spread_is_the_deviation_over_images():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert spread(images).item() == pytest.approx(0.5)
    assert spread(images[:1].repeat(5, 1, 1, 1)).item() == 0
