"""WGAN-GP as research repositories write it: what `benchmark train-step` and `benchmark quality` compare with.

Algorithm 1 of Gulrajani et al. 2017, line by line, without a thought for speed: the critic sees reals, fakes and
interpolates in separate calls, the fakes keep the generator's graph in the critic step, everything is float32 in the
default layout, and the host reads every loss. Needs torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raygan.models.double_backward import InstanceNorm2d, LeakyReLU
from raygan.models.gan import NetworkSettings, build_critic, build_generator

if TYPE_CHECKING:  # needs pydantic
    from raygan.training.settings import StepOptions


class TextbookStep:
    """Generator, critic and their Adams. The networks are raygan's, layer for layer, and start from its weights."""

    def __init__(
        self,
        networks: NetworkSettings,
        settings: StepOptions,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.networks, self.settings, self.device, self.dtype = networks, settings, torch.device(device), dtype
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.generator = build_generator(networks).to(self.device, dtype)
            self.critic = _of_torch(build_critic(networks)).to(self.device, dtype)
        betas = (float(settings.beta1), float(settings.beta2))
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), settings.generator_lr, betas)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), settings.critic_lr, betas)

    def critic_step(self, reals: Tensor, latents: Tensor | None = None, mix: Tensor | None = None) -> float:
        """Take a critic step, and return the loss before it.

        Args:
            reals: uint8 (n, 3, S, S).
            latents: standard normal (n, z_dim); by default drawn from torch's global generator, as `mix` is.
            mix: weights of the fakes in the interpolates, (n, 1) in [0, 1].
        """
        reals = (reals.to(self.device, self.dtype) / 255 - 0.5) / 0.5
        latents = self._draw(latents)
        mix = (torch.rand(len(reals), 1, device=self.device, dtype=self.dtype) if mix is None else mix)[
            :, :, None, None
        ]
        fakes = self.generator(latents)
        interpolates = ((1 - mix) * reals + mix * fakes).detach().requires_grad_()
        on_real, on_fake, on_between = self.critic(reals), self.critic(fakes), self.critic(interpolates)
        (gradients,) = torch.autograd.grad(
            on_between, interpolates, torch.ones_like(on_between), create_graph=True, retain_graph=True
        )
        penalty = ((gradients.view(len(reals), -1).norm(2, dim=1) - 1) ** 2).mean()
        loss = on_fake.mean() - on_real.mean() + self.settings.penalty_weight * penalty
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        return float(loss.item())

    def generator_step(self, latents: Tensor | None = None) -> float:
        """Take a generator step, and return the loss before it; latents as for `critic_step`."""
        loss = -self.critic(self.generator(self._draw(latents))).mean()
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        return float(loss.item())

    def _draw(self, latents: Tensor | None) -> Tensor:
        if latents is not None:
            return latents
        return torch.randn(self.settings.batch_size, self.networks.z_dim, device=self.device, dtype=self.dtype)


def _of_torch(critic: nn.Module) -> nn.Module:
    """Replace raygan's norms and LeakyReLUs in a critic by torch's own, with the same parameters."""
    for parent in critic.modules():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LeakyReLU):
                parent.add_module(name, nn.LeakyReLU(layer.negative_slope))
            elif isinstance(layer, InstanceNorm2d):
                plain = nn.InstanceNorm2d(layer.num_features, affine=True)
                plain.load_state_dict(layer.state_dict())
                parent.add_module(name, plain)
    return critic
