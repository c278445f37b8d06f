"""Losses and penalty against closed forms, in float64."""

import math

import pytest
import torch

from raygan.gan.objectives import SigmoidBCE, WassersteinGP


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 8, 8, dtype=torch.float64)


def linear_critic(weight):
    return lambda images: (images * weight).flatten(1).sum(1)


def test_gradient_penalty_of_a_linear_critic(images):
    """D(x) = <w, x> has gradient w everywhere, so the penalty is (|w| - 1)^2 for every image, and its
    gradient with respect to w is 2 (|w| - 1) w / |w|."""
    reals, fakes = images
    weight = torch.randn(3, 8, 8, dtype=torch.float64, requires_grad=True)
    mix = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    losses, terms = WassersteinGP().critic_loss(linear_critic(weight), reals, fakes, mix, penalty_weight=10.0)
    norm = weight.norm()
    assert terms["gradient_norm"].tolist() == pytest.approx([norm.item()] * 5, rel=1e-12)
    assert terms["gradient_penalty"].tolist() == pytest.approx([(norm.item() - 1) ** 2] * 5, rel=1e-12)
    gap = ((fakes - reals) * weight).flatten(1).sum(1)
    torch.testing.assert_close(losses, gap + 10 * (norm - 1) ** 2, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.mean(), weight)
    expected = (fakes - reals).mean(0) + 10 * 2 * (norm - 1) * weight / norm
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-12)


def test_gradient_penalty_of_a_quadratic_critic(images):
    """D(x) = |x|^2 / 2 has gradient x, so the norm is that of the interpolate itself."""
    reals, fakes = images
    mix = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    _, terms = WassersteinGP().critic_loss(lambda x: x.square().flatten(1).sum(1) / 2, reals, fakes, mix, 1.0)
    between = (1 - mix) * reals + mix * fakes
    torch.testing.assert_close(terms["gradient_norm"], between.flatten(1).norm(dim=1))


def test_a_skipped_penalty_leaves_the_wasserstein_terms(images):
    reals, fakes = images
    weight = torch.randn(3, 8, 8, dtype=torch.float64)
    losses, terms = WassersteinGP().critic_loss(linear_critic(weight), reals, fakes, torch.zeros(5, 1, 1, 1), 0.0)
    expected = linear_critic(weight)(fakes) - linear_critic(weight)(reals)
    torch.testing.assert_close(losses, expected)
    assert set(terms) == {"wasserstein"}


def test_generators_maximise_what_the_critic_gives(images):
    reals, fakes = images
    critic = linear_critic(torch.randn(3, 8, 8, dtype=torch.float64))
    losses, _ = WassersteinGP().generator_loss(critic, reals, fakes)
    torch.testing.assert_close(losses, -critic(fakes))


def test_bce_is_the_logarithm_of_the_sigmoid(images):
    reals, fakes = images
    critic = linear_critic(torch.full((3, 8, 8), 0.1, dtype=torch.float64))
    losses, terms = SigmoidBCE().critic_loss(critic, reals, fakes, torch.zeros(5, 1, 1, 1), 0.0)
    for i in range(5):
        real, fake = (1 / (1 + math.exp(-critic(x)[i].item())) for x in (reals, fakes))
        assert losses[i].item() == pytest.approx(-math.log(real) - math.log(1 - fake), rel=1e-12)
        assert terms["probability_real"][i].item() == pytest.approx(real, rel=1e-12)


def test_bce_survives_scores_that_overflow_a_sigmoid():
    score = torch.tensor([1000.0])
    losses, _ = SigmoidBCE().critic_loss(lambda x: x, -score, score, torch.zeros(1), 0.0)
    assert losses.item() == 2000.0
