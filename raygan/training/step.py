"""One critic or generator step on one rank's part of a global batch.

A step depends on the weights, the reals and the batch number, and on nothing else. Every random draw (latents,
interpolation, mirroring, augmentation) comes from a generator seeded with the run's seed and the batch number. It is
drawn for the whole global batch, and each rank takes its own rows. So N ranks compute what one process computes on
the whole batch, whatever N is, and a resumed run needs no random state beyond the batch number. (Batch norm is the
exception unless it is synchronized: each rank normalizes its own rows.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from raygan.models.averages import move_average
from raygan.models.distributed import Share, distributed
from raygan.models.gan import NetworkSettings, build_critic, build_generator, draw_latents, to_signed
from raygan.models.hardware import pick_precision
from raygan.models.latents import seeded
from raygan.models.sync_norm import synchronize
from raygan.training.augment import DRAWS_PER_IMAGE, augment, mirror
from raygan.training.objectives import CriticFunction, Terms, at_least_float32
from raygan.training.registry import OBJECTIVES
from raygan.training.schedule import learning_rate_share

if TYPE_CHECKING:
    from raygan.training.settings import StepOptions

Precision = Literal["fp32", "bf16"]


class GanStep:
    """Generator, critic, EMA and optimizers, and the two steps that change them.

    Attributes:
        generator: the network that is trained.
        critic: its opponent.
        ema: `AveragedModel` of the generator; its `.module` is what users get.
        batches: global batches of reals seen so far.
        precision: "bf16" runs convolutions in bfloat16 by autocast; losses, penalty norms, weights and optimizer
            states stay float32. "fp64" computes everything in float64.
    """

    def __init__(
        self,
        networks: NetworkSettings,
        options: StepOptions,
        device: torch.device | str = "cpu",
        share: Share | None = None,
        *,
        total_kimg: float = 0.0,
        float64: bool = False,
    ):
        """Build networks and optimizers from the seed.

        Args:
            networks: what to build.
            options: how to train it; precision "auto" is decided for the device.
            device: where.
            share: this rank's; more than one rank needs a `torch.distributed` process group, and the networks are
                then wrapped in `DistributedDataParallel`.
            total_kimg: the run's length in thousands of images, which a decaying learning rate depends on.
            float64: compute everything in float64, to check the arithmetic.
        """
        self.networks, self.options, self.total_kimg = networks, options, total_kimg
        self.device = torch.device(device)
        self.share = share or Share()
        self.precision = "fp64" if float64 else pick_precision(options.precision, self.device)
        self.dtype = torch.float64 if float64 else torch.float32
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            self.generator = build_generator(networks).to(self.device, self.dtype)
            self.critic = build_critic(networks).to(self.device, self.dtype)
        if options.sync_batch_norm:
            synchronize(self.generator)
        self.objective = OBJECTIVES.load(options.objective)()
        self.ema = AveragedModel(self.generator, multi_avg_fn=self._average, use_buffers=True)
        self.ema.requires_grad_(False).eval()
        betas = (float(options.beta1), float(options.beta2))
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), options.generator_lr, betas, fused=True
        )
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, betas, fused=True)
        self.batches = 0
        zeros = partial(torch.zeros, 1, device=self.device, dtype=self.dtype)
        z_dim, size = networks.z_dim, networks.image_size
        # Networks without labels ignore the class.
        self._ddp_generator = distributed(self.generator, self.share, lambda net: net(zeros(z_dim), zeros().long()))
        self._ddp_critic = distributed(self.critic, self.share, lambda net: net(zeros(3, size, size), zeros().long()))

    @property
    def images_seen(self) -> int:
        """Real images shown to the critic so far, all ranks together."""
        return self.batches * self.options.batch_size

    @property
    def learning_rate_share(self) -> float:
        """The share of both learning rates that is in force now, in [0, 1]."""
        return learning_rate_share(self.options, self.images_seen, self.total_kimg)

    def settings(self) -> dict[str, Any]:
        """How the networks are stepped, JSON-ready, as checkpoints record it."""
        return {**self.options.plain(), "precision": self.precision, "total_kimg": self.total_kimg}

    def step(self, reals: Tensor, classes: Tensor | None = None) -> Terms:
        """One critic step, and a generator step after every `n_critic` critic steps.

        Args:
            reals: this rank's rows of the global batch, uint8 (n, 3, S, S) as stored in shards.
            classes: their class numbers, int64 (n,), for conditional networks; fakes are drawn of the same classes.

        Returns:
            This rank's sums of each term over its images, on the device, which is never waited for.
        """
        batch = self.batches
        scaled = self._prepare_reals(reals, batch)
        classes = None if classes is None or not self.networks.labels else classes.to(self.device)
        self._set_rates()
        terms = self._critic_step(scaled, classes, batch)
        if (batch + 1) % self.options.n_critic == 0:
            terms |= self._generator_step(scaled, classes, batch)
        self.batches += 1
        return terms

    def sample(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images (n, 3, S, S) of the EMA generator for latents (n, z_dim) and classes (n,)."""
        with torch.no_grad(), self._autocast():
            images: Tensor = self.ema.module(latents.to(self.device, self.dtype), classes)
        return images.float()

    def _set_rates(self) -> None:
        share = self.learning_rate_share
        for optimizer, rate in (
            (self.generator_optimizer, self.options.generator_lr),
            (self.critic_optimizer, self.options.critic_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _critic_step(self, reals: Tensor, classes: Tensor | None, batch: int) -> Terms:
        options = self.options
        random = self._random(batch, "critic")
        latents = self._rows(draw_latents(options.batch_size, self.networks.z_dim, random))
        mix = self._rows(torch.rand(options.batch_size, 1, 1, 1, generator=random))
        # Lazy regularization (Karras et al. 2020, appendix B): a rare penalty weighs as much as a steady one.
        penalized = batch % options.penalty_every == 0
        weight = options.penalty_weight * options.penalty_every if penalized else 0.0
        with self._autocast():
            with torch.no_grad():
                fakes = self.generator(latents, classes).to(self.dtype)
            reals, fakes = self._augment_pair(reals, fakes, random)
            critic = _scores_of(self._ddp_critic, classes)
            losses, terms = self.objective.critic_loss(critic, reals, fakes, mix, weight)
        norm = self._descend(losses, self.critic, self.critic_optimizer)
        return {**_sums(terms), "critic_loss": losses.detach().sum(), "critic_gradient": norm * len(losses)}

    def _generator_step(self, reals: Tensor, classes: Tensor | None, batch: int) -> Terms:
        random = self._random(batch, "generator")
        latents = self._rows(draw_latents(self.options.batch_size, self.networks.z_dim, random))
        # The critic only passes gradients on to the images; its own would be thrown away.
        self.critic.requires_grad_(False)
        with self._autocast():
            fakes = self._ddp_generator(latents, classes).to(self.dtype)
            reals, fakes = self._augment_pair(reals, fakes, random)
            losses, terms = self.objective.generator_loss(_scores_of(self.critic, classes), reals, fakes)
        norm = self._descend(losses, self.generator, self.generator_optimizer)
        self.critic.requires_grad_(True)
        self.ema.update_parameters(self.generator)
        return {
            **_sums(terms),
            "generator_loss": losses.detach().sum(),
            "generator_gradient": norm * len(losses),
        }

    def _descend(self, losses: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Step down the gradient of the global batch's mean loss; returns the gradient's norm before clipping.

        DDP divides the sum of the ranks' gradients by the number of ranks. For that to be the global mean, each rank's
        loss is its sum times ranks / global batch.
        """
        optimizer.zero_grad(set_to_none=True)
        (losses.sum() * (self.share.world_size / self.options.batch_size)).backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.options.clip_gradient:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), self.options.clip_gradient, norm)
        optimizer.step()
        return norm

    def _prepare_reals(self, reals: Tensor, batch: int) -> Tensor:
        images = to_signed(reals.to(self.device, non_blocking=True), self.dtype)
        if self.options.mirror:
            random = self._random(batch, "mirror")
            images = mirror(images, self._rows(torch.rand(self.options.batch_size, generator=random)))
        return images

    def _augment_pair(self, reals: Tensor, fakes: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.options.augment:
            return reals, fakes
        draws = torch.rand(2, self.options.batch_size, DRAWS_PER_IMAGE, generator=random)
        both = torch.cat([self._rows(draws[0]), self._rows(draws[1])])
        changed = augment(torch.cat([reals, fakes]), both, self.options.augment)
        first, second = changed.split(len(reals))
        return first, second

    def _rows(self, batch: Tensor) -> Tensor:
        return batch[self.share.rows(len(batch))].to(self.device, self.dtype, non_blocking=True)

    def _random(self, batch: int, purpose: str) -> torch.Generator:
        return seeded(self.options.seed, batch, purpose)

    def _average(self, averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        """Move the EMA toward the generator (Karras et al. 2020: half-life in images, with ramp-up)."""
        images_per_update = self.options.batch_size * self.options.n_critic
        half_life = self.options.ema_kimg * 1000
        if self.options.ema_ramp:
            half_life = min(half_life, int(updates) * images_per_update * self.options.ema_ramp)
        keep = 0.5 ** (images_per_update / max(half_life, 1e-8))
        move_average(averages, currents, keep)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _scores_of(critic: Callable[..., Tensor], classes: Tensor | None) -> CriticFunction:
    """The critic as a function of images alone: of one batch of these classes, or of several in a row."""

    def scores(images: Tensor) -> Tensor:
        if classes is None:
            return at_least_float32(critic(images))
        return at_least_float32(critic(images, classes.repeat(len(images) // max(1, len(classes)))))

    return scores


def _sums(terms: Terms) -> Terms:
    return {name: values.sum() for name, values in terms.items()}
