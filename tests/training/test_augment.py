"""DiffAugment against its definition, and the gradient through it against finite differences."""

import pytest
import torch

from raygan.training.augment import DRAWS_PER_IMAGE, POLICIES, augment, mirror


def middle(count=4):
    """Draws for which color and translation change nothing."""
    return torch.full((count, DRAWS_PER_IMAGE), 0.5)


def test_middle_draws_change_nothing_but_the_cutout():
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(augment(images, middle(), ("color", "translation")), images)


@pytest.mark.parametrize(("draw", "shift"), [(0.0, -4), (0.5, 0), (0.999, 4)])
def test_translation_moves_by_up_to_an_eighth_and_fills_with_gray(draw, shift):
    images = torch.rand(1, 3, 32, 32) + 0.5
    draws = middle(1)
    draws[:, 3] = draw
    moved = augment(images, draws, ("translation",))
    rows = torch.arange(32) + shift
    inside = (rows >= 0) & (rows < 32)
    torch.testing.assert_close(moved[:, :, inside], images[:, :, rows[inside]])
    assert (moved[:, :, ~inside] == 0).all()


def test_cutout_grays_out_a_square_of_half_the_side():
    draws = middle(1)
    cut = augment(torch.ones(1, 3, 32, 32), draws, ("cutout",))
    assert (cut == 0).sum() == 3 * 16 * 16


def test_saturation_zero_is_gray_and_brightness_shifts():
    images = torch.rand(2, 3, 16, 16)
    draws = middle(2)
    draws[:, 1] = 0.0
    gray = augment(images, draws, ("color",))
    torch.testing.assert_close(gray[:, 0], gray[:, 1])
    draws = middle(2)
    draws[:, 0] = 0.75
    torch.testing.assert_close(augment(images, draws, ("color",)), images + 0.25)


def test_gradients_pass_through_every_policy():
    torch.manual_seed(1)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    draws = torch.rand(2, DRAWS_PER_IMAGE)
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, POLICIES), images, nondet_tol=1e-12)


def test_mirror_flips_only_the_chosen_images():
    images = torch.rand(3, 3, 8, 8)
    flipped = mirror(images, torch.tensor([0.1, 0.9, 0.4]))
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])
    assert torch.equal(flipped[2], images[2].flip(2))


def test_an_unknown_policy_is_named_in_the_error():
    with pytest.raises(ValueError, match="colour"):
        augment(torch.zeros(1, 3, 8, 8), middle(1), ("colour",))
