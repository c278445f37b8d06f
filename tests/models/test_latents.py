"""A seed stands for one latent, and walks stay on the sphere."""

import torch

from raygan.models.latents import latents_of, slerp


def test_a_seed_gives_the_same_latent_alone_or_with_others():
    together = latents_of(range(7, 12), 16)
    assert torch.equal(together[2:3], latents_of([9], 16))
    assert len(torch.unique(together, dim=0)) == 5


def test_slerp_moves_evenly_on_the_sphere():
    starts, ends = torch.tensor([[3.0, 0.0]]).repeat(4, 1), torch.tensor([[0.0, 3.0]]).repeat(4, 1)
    walk = slerp(starts, ends, torch.tensor([0.0, 1 / 3, 0.5, 1.0]))
    angles = torch.atan2(walk[:, 1], walk[:, 0])
    torch.testing.assert_close(angles, torch.tensor([0.0, 1 / 6, 0.25, 0.5]) * torch.pi)
    torch.testing.assert_close(walk.norm(dim=1), torch.full((4,), 3.0))


def test_slerp_between_equal_latents_is_finite():
    latents = latents_of([3], 8)
    torch.testing.assert_close(slerp(latents, latents, torch.tensor([0.4])), latents)
