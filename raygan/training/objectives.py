"""Objectives: what the critic and the generator minimise, as per-image losses.

An objective is stateless. It sees the critic as a function from images to scores and returns one loss
per image of the local batch, so that ranks with unequal shares can weight them rightly, together with
detached per-image terms for the log.

The critic is called once on reals and fakes together, and for WGAN-GP once more on the interpolates: together with
them, the penalty's two backward passes would go through reals and fakes too, whose zeros cost as much as numbers do.
All terms meet in one backward pass of the loss, so that `DistributedDataParallel` averages each gradient once, when it
is whole. A critic with batch statistics is the exception: DCGAN normalises reals and fakes as separate batches, so
`SigmoidBCE` calls it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CriticFunction = Callable[[Tensor], Tensor]
Terms = dict[str, Tensor]


class Objective(Protocol):
    """The two losses of an adversarial game.

    Arguments are images (N, 3, S, S) in [-1, 1]. `penalty_weight` is 0 on the steps that skip the
    penalty. `mix` (N, 1, 1, 1) in [0, 1] places the interpolates of WGAN-GP.
    """

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]: ...

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]: ...


@dataclass(frozen=True)
class WassersteinGP:
    """WGAN-GP (Gulrajani et al. 2017, equation 3).

    Critic: ``D(fake) - D(real) + weight * (|grad_x D(x)| - 1)**2`` with x uniformly between a real and
    a fake; generator: ``-D(fake)``. `drift` adds ``drift * D(real)**2``, which keeps the scores near zero
    without changing the optimum (Karras et al. 2018, appendix A.1); 0 is the paper's objective.
    """

    drift: float = 0.0

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        count = len(reals)
        if penalty_weight == 0:
            on_real, on_fake = _wide(critic(torch.cat([reals, fakes]))).split(count)
            loss = on_fake - on_real
            terms = {"wasserstein": -loss.detach()}
        else:
            on_real, on_fake = _wide(critic(torch.cat([reals, fakes]))).split(count)
            between = torch.lerp(reals, fakes, mix).requires_grad_()
            norms = _gradient_norms(_wide(critic(between)), between)
            penalty = (norms - 1.0).square()
            loss = on_fake - on_real
            terms = {
                "wasserstein": -loss.detach(),
                "gradient_penalty": penalty.detach(),
                "gradient_norm": norms.detach(),
            }
            loss = loss + penalty_weight * penalty
        if self.drift:
            loss = loss + self.drift * on_real.square()
        return loss, terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        return -_wide(critic(fakes)), {}


@dataclass(frozen=True)
class SigmoidBCE:
    """DCGAN: binary cross-entropy on sigmoid(D), the generator non-saturating (Goodfellow et al. 2014).

    Critic: ``-log s(D(real)) - log(1 - s(D(fake)))``; generator: ``-log s(D(fake))``. The sigmoid is
    inside softplus, so large scores neither overflow nor lose their gradient. There is no penalty.
    """

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        on_real, on_fake = _wide(critic(reals)), _wide(critic(fakes))
        terms = {
            "probability_real": on_real.detach().sigmoid(),
            "probability_fake": on_fake.detach().sigmoid(),
        }
        return F.softplus(-on_real) + F.softplus(on_fake), terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        return F.softplus(-_wide(critic(fakes))), {}


@dataclass(frozen=True)
class RelativisticR1R2:
    """R3GAN (Huang et al. 2024, arXiv 2501.05441): relativistic pairing with zero-centred penalties.

    Critic: ``softplus(D(fake) - D(real)) + weight / 2 * (|grad D(real)|**2 + |grad D(fake)|**2)``; generator:
    ``softplus(D(real) - D(fake))``. Each fake is compared with one real, so that no mode can be dropped
    unpunished; both penalties are needed for local convergence. `penalty_weight` is the paper's gamma.
    """

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        images = torch.cat([reals, fakes]).requires_grad_(penalty_weight > 0)
        scores = _wide(critic(images))
        on_real, on_fake = scores.split(len(reals))
        loss = F.softplus(on_fake - on_real)
        terms = {"real_over_fake": (on_real - on_fake).detach()}
        if penalty_weight:
            r1, r2 = _gradient_norms(scores, images).square().split(len(reals))
            terms |= {"r1": r1.detach(), "r2": r2.detach()}
            loss = loss + penalty_weight / 2 * (r1 + r2)
        return loss, terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        with torch.no_grad():
            on_real = _wide(critic(reals))
        return F.softplus(on_real - _wide(critic(fakes))), {}


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "wgan-gp": WassersteinGP,
    "dcgan": SigmoidBCE,
    "r3gan": RelativisticR1R2,
}


def _gradient_norms(scores: Tensor, images: Tensor) -> Tensor:
    """Euclidean norm (N,) of each score's gradient with respect to its image, differentiable."""
    (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    norms: Tensor = _wide(gradients).flatten(1).norm(dim=1)
    return norms


def _wide(values: Tensor) -> Tensor:
    """Half precision is for convolutions only: losses and norms are float32 at least."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
