"""Losses and penalties against closed forms, in float64."""

import math

import pytest
import torch

from raygan.training.objectives import RelativisticR1R2, SigmoidBCE, WassersteinGP


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 8, 8, dtype=torch.float64)


def linear_critic(weight):
    return lambda images: (images * weight).flatten(1).sum(1)


def test_gradient_penalty_of_a_linear_critic(images):
    """D(x) = <w, x> has gradient w, so each penalty is (|w| - 1)^2 with gradient 2 (|w| - 1) w / |w|."""
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
    """D(x) = |x|^2 / 2 has gradient x, so the gradient norm is the norm of the interpolate."""
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
    assert set(terms) == {"wasserstein", "certainty"}


def test_generators_maximize_the_score(images):
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


def test_r3gan_of_a_quadratic_critic(images):
    """D(x) = |x|^2 / 2 has gradient x: R1 is |real|^2 and R2 is |fake|^2."""
    reals, fakes = images

    def critic(x):
        return x.square().flatten(1).sum(1) / 20

    losses, terms = RelativisticR1R2().critic_loss(critic, reals, fakes, torch.zeros(5, 1, 1, 1), 3.0)
    r1, r2 = ((x / 10).square().flatten(1).sum(1) for x in (reals, fakes))
    torch.testing.assert_close(terms["r1"], r1)
    torch.testing.assert_close(terms["r2"], r2)
    gap = critic(fakes) - critic(reals)
    torch.testing.assert_close(losses, torch.log1p(gap.exp()) + 1.5 * (r1 + r2))
    losses, _ = RelativisticR1R2().generator_loss(critic, reals, fakes)
    torch.testing.assert_close(losses, torch.log1p((-gap).exp()))


@pytest.mark.parametrize("objective", [WassersteinGP(), RelativisticR1R2()])
def test_penalized_losses_agree_with_finite_differences(images, objective):
    """A penalty's second derivative, through a critic with a norm and a smooth activation."""
    reals, fakes = images
    torch.manual_seed(2)
    first, last = torch.randn(4, 3, 3, 3).double() / 5, torch.randn(4, 64).double() / 5

    def loss(first, last):
        def critic(x):
            x = torch.nn.functional.conv2d(x, first, stride=1, padding=1)
            x = torch.nn.functional.instance_norm(x).tanh()
            return (x.flatten(2) * last).sum((1, 2))

        return objective.critic_loss(critic, reals, fakes, torch.full((5, 1, 1, 1), 0.3).double(), 2.0)[0].sum()

    assert torch.autograd.gradcheck(loss, (first.requires_grad_(), last.requires_grad_()), atol=1e-6)
