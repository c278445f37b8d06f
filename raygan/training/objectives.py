"""Objectives: what the critic and the generator minimize, one loss per image.

An objective is stateless. It sees the critic as a function from images to scores and returns one loss per image of the
local batch, so that ranks with unequal shares are weighted correctly, and detached per-image terms for the log.

The critic is called once on reals and fakes together. WGAN-GP calls it again on the interpolates: in one call, the
penalty's two backward passes would run through reals and fakes too, and their zero gradients cost as much as any
other. All terms meet in one backward pass of the loss, so `DistributedDataParallel` averages each gradient once, when
it is complete. A critic with batch statistics is the exception: DCGAN normalizes reals and fakes as separate batches,
so `SigmoidBCE` calls it twice.

`raygan.training.registry` has their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from raygan.models.double_backward import no_weight_gradients

CriticFunction = Callable[[Tensor], Tensor]
Terms = dict[str, Tensor]


class Objective(ABC):
    """The two losses of an adversarial game; constructed without arguments.

    Attributes:
        panels: title of the panel in which the run's curves show each term; a term without one is only logged. The
            term ``certainty`` is 1 where the critic takes a training photo for real, -1 where it takes it for
            generated; an objective without absolute scores compares it with a fake.
        allows_batch_norm: whether the critic may normalize over the batch. It may not where a penalty is defined
            per image, or where reals and fakes share a batch.
    """

    panels: ClassVar[Mapping[str, str]] = {}
    allows_batch_norm: ClassVar[bool] = False

    @abstractmethod
    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        """The critic's losses (N,), and terms (N,) to log.

        Args:
            critic: from images to scores (N,), float32 or wider.
            reals: images (N, 3, S, S) in [-1, 1].
            fakes: images (N, 3, S, S) in [-1, 1], without gradients to the generator.
            mix: (N, 1, 1, 1) in [0, 1]; places the interpolates between reals and fakes.
            penalty_weight: weight of the gradient penalty; 0 on steps that skip it.
        """

    @abstractmethod
    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        """The generator's losses (N,), and terms (N,) to log; arguments as for `critic_loss`."""


class WassersteinGP(Objective):
    """WGAN-GP (Gulrajani et al. 2017, equation 3).

    Critic: ``D(fake) - D(real) + weight * (|grad_x D(x)| - 1)**2`` with x uniformly between a real and a fake;
    generator: ``-D(fake)``.
    """

    panels: ClassVar[Mapping[str, str]] = {
        "wasserstein": "losses",
        "gradient_penalty": "penalties",
        "certainty": "shares",
    }

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        on_real, on_fake = critic(torch.cat([reals, fakes])).split(len(reals))
        loss = on_fake - on_real
        terms = {"wasserstein": -loss.detach(), "certainty": -loss.detach().sign()}
        if penalty_weight:
            between = torch.lerp(reals, fakes, mix).requires_grad_()
            norms = gradient_norms(critic(between), between)
            penalty = (norms - 1.0).square()
            terms |= {"gradient_penalty": penalty.detach(), "gradient_norm": norms.detach()}
            loss = loss + penalty_weight * penalty
        return loss, terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        return -critic(fakes), {}


class SigmoidBCE(Objective):
    """DCGAN: binary cross-entropy on sigmoid(D), the generator non-saturating (Goodfellow et al. 2014).

    Critic: ``-log s(D(real)) - log(1 - s(D(fake)))``; generator: ``-log s(D(fake))``. The sigmoid is part of softplus,
    so large scores neither overflow nor lose their gradient. There is no penalty.
    """

    panels: ClassVar[Mapping[str, str]] = {
        "probability_real": "shares",
        "probability_fake": "shares",
        "certainty": "shares",
    }
    allows_batch_norm: ClassVar[bool] = True

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        on_real, on_fake = critic(reals), critic(fakes)
        terms = {
            "probability_real": on_real.detach().sigmoid(),
            "probability_fake": on_fake.detach().sigmoid(),
            "certainty": on_real.detach().sign(),
        }
        return F.softplus(-on_real) + F.softplus(on_fake), terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        return F.softplus(-critic(fakes)), {}


class RelativisticR1R2(Objective):
    """R3GAN (Huang et al. 2024, arXiv 2501.05441): relativistic pairing with zero-centered penalties.

    Critic: ``softplus(D(fake) - D(real)) + weight / 2 * (|grad D(real)|**2 + |grad D(fake)|**2)``; generator:
    ``softplus(D(real) - D(fake))``. Each fake is compared with a real, so dropping a mode is always punished; local
    convergence needs both penalties. `penalty_weight` is the paper's gamma.
    """

    panels: ClassVar[Mapping[str, str]] = {
        "real_over_fake": "losses",
        "r1": "penalties",
        "r2": "penalties",
        "certainty": "shares",
    }

    def critic_loss(
        self, critic: CriticFunction, reals: Tensor, fakes: Tensor, mix: Tensor, penalty_weight: float
    ) -> tuple[Tensor, Terms]:
        images = torch.cat([reals, fakes]).requires_grad_(penalty_weight > 0)
        scores = critic(images)
        on_real, on_fake = scores.split(len(reals))
        loss = F.softplus(on_fake - on_real)
        margin = (on_real - on_fake).detach()
        terms = {"real_over_fake": margin, "certainty": margin.sign()}
        if penalty_weight:
            r1, r2 = gradient_norms(scores, images).square().split(len(reals))
            terms |= {"r1": r1.detach(), "r2": r2.detach()}
            loss = loss + penalty_weight / 2 * (r1 + r2)
        return loss, terms

    def generator_loss(self, critic: CriticFunction, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Terms]:
        with torch.no_grad():
            on_real = critic(reals)
        return F.softplus(on_real - critic(fakes)), {}


def gradient_norms(scores: Tensor, images: Tensor) -> Tensor:
    """Euclidean norm (N,) of each score's gradient with respect to its image, differentiable."""
    with no_weight_gradients():
        (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    norms: Tensor = at_least_float32(gradients).flatten(1).norm(dim=1)
    return norms


def at_least_float32(values: Tensor) -> Tensor:
    """Values without half precision, which is for convolutions, not for losses and norms."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
