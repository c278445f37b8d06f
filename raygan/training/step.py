"""One critic or generator step on one rank's part of a global batch.

The step is a function of the weights, the reals and a batch number, and of nothing else: every random
draw (latents, interpolation, mirroring, augmentation) comes from a generator seeded with the run's seed
and the batch number, is drawn for the whole global batch, and each rank takes its own rows. So N ranks do
the arithmetic of one process on the concatenated batch, whatever N is, and a resumed run needs no random
state but the batch number. (Batch normalisation is the exception: each rank normalises its own rows.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from raygan.models.distributed import Share, distributed
from raygan.models.gan import Critic, Generator, NetworkSettings, draw_latents, to_signed
from raygan.models.latents import seeded
from raygan.models.sync_norm import synchronise
from raygan.training.augment import DRAWS_PER_IMAGE, augment, mirror
from raygan.training.objectives import OBJECTIVES, CriticFunction, Terms

Precision = Literal["fp32", "bf16", "fp64"]


@dataclass(frozen=True)
class StepSettings:
    """How the two networks are stepped.

    objective: a name in `objectives.OBJECTIVES`.
    batch_size: images in the global batch, all ranks together.
    n_critic: critic steps to each generator step.
    generator_lr, critic_lr, beta1, beta2: Adam's; both betas in [0, 1).
    penalty_weight: weight of the gradient penalty (lambda).
    penalty_every: the penalty is taken every so many critic steps with its weight multiplied by as
        many (lazy regularisation, Karras et al. 2020, appendix B); 1 takes it always.
    augment: DiffAugment policies for reals and fakes; none by default.
    mirror: flip reals left to right at random.
    ema_kimg: half-life of the generator's moving average, in thousands of images; with 0 it is the generator.
    ema_ramp: the half-life is at most this share of the images seen so far, so that the average does not
        lag behind a young generator (Karras et al. 2020); 0 leaves it fixed.
    precision: "bf16" runs convolutions in bfloat16 by autocast; losses, the penalty's norm, weights and
        optimiser states stay float32. "fp64" computes everything in float64, to check the arithmetic.
    warmup_kimg: both learning rates rise linearly from zero over the first so many thousand images; 0 starts
        at once.
    decay: both learning rates fall linearly to zero over this last share of `total_kimg`; 0 keeps them.
    total_kimg: the run's length, which `decay` needs to know.
    clip_gradient: longest gradient of either network, longer ones are scaled down to it; 0 clips nothing.
    sync_batch_norm: the generator's batch normalisation takes the batch of all ranks; otherwise each rank
        normalises its own rows.
    seed: of every random draw and of the initial weights.
    """

    objective: str = "wgan-gp"
    batch_size: int = 64
    n_critic: int = 5
    generator_lr: float = 1e-4
    critic_lr: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.9
    penalty_weight: float = 10.0
    penalty_every: int = 1
    augment: tuple[str, ...] = ()
    mirror: bool = False
    ema_kimg: float = 10.0
    ema_ramp: float = 0.05
    precision: Precision = "fp32"
    warmup_kimg: float = 0.0
    decay: float = 0.0
    total_kimg: float = 0.0
    clip_gradient: float = 0.0
    sync_batch_norm: bool = False
    seed: int = 0

    def rate(self, images: int) -> float:
        """The share of both learning rates in force when so many images have been seen, in [0, 1]."""
        share = 1.0
        if self.warmup_kimg:
            share = min(1.0, (images + self.batch_size) / (self.warmup_kimg * 1000))
        if self.decay and self.total_kimg:
            left = 1 - images / (self.total_kimg * 1000)
            share *= min(1.0, max(0.0, left / self.decay))
        return share

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class GanStep:
    """Generator, critic, EMA and optimisers, and the two steps that change them.

    With ``share.world_size > 1`` a `torch.distributed` process group must be there; the networks are then
    wrapped in `DistributedDataParallel`, which averages gradients over ranks.

    Attributes: `generator`, `critic` (bare networks), `ema` (`AveragedModel` of the generator; `.module`
    is what users get), `batches` (global batches of reals seen so far).
    """

    def __init__(
        self,
        networks: NetworkSettings,
        settings: StepSettings,
        device: torch.device | str = "cpu",
        share: Share | None = None,
    ):
        self.networks, self.settings = networks, settings
        self.device = torch.device(device)
        self.share = share or Share()
        self.dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.generator = Generator(networks).to(self.device, self.dtype)
            self.critic = Critic(networks).to(self.device, self.dtype)
        if settings.sync_batch_norm:
            synchronise(self.generator)
        self.objective = OBJECTIVES[settings.objective]()
        self.ema = AveragedModel(self.generator, multi_avg_fn=self._average, use_buffers=True)
        self.ema.requires_grad_(False).eval()
        betas = (float(settings.beta1), float(settings.beta2))
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), settings.generator_lr, betas, fused=True
        )
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), settings.critic_lr, betas, fused=True)
        self.batches = 0
        zeros = partial(torch.zeros, 1, device=self.device, dtype=self.dtype)
        z_dim, size = networks.z_dim, networks.image_size
        # Networks without labels don't look at the class.
        self._ddp_generator = distributed(self.generator, self.share, lambda net: net(zeros(z_dim), zeros().long()))
        self._ddp_critic = distributed(self.critic, self.share, lambda net: net(zeros(3, size, size), zeros().long()))

    @property
    def images_seen(self) -> int:
        """Real images shown to the critic so far, all ranks together."""
        return self.batches * self.settings.batch_size

    def step(self, reals: Tensor, classes: Tensor | None = None) -> Terms:
        """One critic step on `reals`, and a generator step whenever `n_critic` critic steps are done.

        reals: this rank's rows of the global batch, uint8 (n, 3, S, S) as stored in shards. classes: their
        numbers, int64 (n,), for conditional networks; fakes are drawn of the same classes.
        Returns this rank's sums over its images of each term, on the device, never waiting for it.
        """
        batch = self.batches
        scaled = self._prepare_reals(reals, batch)
        classes = None if classes is None or not self.networks.labels else classes.to(self.device)
        self._set_rates()
        terms = self._critic_step(scaled, classes, batch)
        if (batch + 1) % self.settings.n_critic == 0:
            terms |= self._generator_step(scaled, classes, batch)
        self.batches += 1
        return terms

    def sample(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images (n, 3, S, S) of the EMA generator for given latents (n, z_dim) and classes (n,)."""
        with torch.no_grad(), self._autocast():
            images: Tensor = self.ema.module(latents.to(self.device, self.dtype), classes)
        return images.float()

    def _set_rates(self) -> None:
        share = self.settings.rate(self.images_seen)
        for optimizer, rate in (
            (self.generator_optimizer, self.settings.generator_lr),
            (self.critic_optimizer, self.settings.critic_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _critic_step(self, reals: Tensor, classes: Tensor | None, batch: int) -> Terms:
        settings = self.settings
        random = self._random(batch, "critic")
        latents = self._rows(draw_latents(settings.batch_size, self.networks.z_dim, random))
        mix = self._rows(torch.rand(settings.batch_size, 1, 1, 1, generator=random))
        penalised = batch % settings.penalty_every == 0
        weight = settings.penalty_weight * settings.penalty_every if penalised else 0.0
        with self._autocast():
            with torch.no_grad():
                fakes = self.generator(latents, classes).to(self.dtype)
            reals, fakes = self._augment_pair(reals, fakes, random)
            critic = _knowing(classes, self._ddp_critic)
            losses, terms = self.objective.critic_loss(critic, reals, fakes, mix, weight)
        norm = self._descend(losses, self.critic, self.critic_optimizer)
        return {**_sums(terms), "critic_loss": losses.detach().sum(), "critic_gradient": norm * len(losses)}

    def _generator_step(self, reals: Tensor, classes: Tensor | None, batch: int) -> Terms:
        random = self._random(batch, "generator")
        latents = self._rows(draw_latents(self.settings.batch_size, self.networks.z_dim, random))
        # The critic only passes gradients on to the images here; its own would be thrown away.
        self.critic.requires_grad_(False)
        with self._autocast():
            fakes = self._ddp_generator(latents, classes).to(self.dtype)
            reals, fakes = self._augment_pair(reals, fakes, random)
            losses, terms = self.objective.generator_loss(_knowing(classes, self.critic), reals, fakes)
        norm = self._descend(losses, self.generator, self.generator_optimizer)
        self.critic.requires_grad_(True)
        self.ema.update_parameters(self.generator)
        return {
            **_sums(terms),
            "generator_loss": losses.detach().sum(),
            "generator_gradient": norm * len(losses),
        }

    def _descend(self, losses: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Step along the gradient of the mean loss over the global batch; its norm before the step.

        DDP divides the sum of the ranks' gradients by their number, which is the global mean only if
        each rank's loss is its sum times ranks / global batch.
        """
        optimizer.zero_grad(set_to_none=True)
        (losses.sum() * (self.share.world_size / self.settings.batch_size)).backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.clip_gradient:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), self.settings.clip_gradient, norm)
        optimizer.step()
        return norm

    def _prepare_reals(self, reals: Tensor, batch: int) -> Tensor:
        images = to_signed(reals.to(self.device, non_blocking=True), self.dtype)
        if self.settings.mirror:
            random = self._random(batch, "mirror")
            images = mirror(images, self._rows(torch.rand(self.settings.batch_size, generator=random)))
        return images

    def _augment_pair(self, reals: Tensor, fakes: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.settings.augment:
            return reals, fakes
        draws = torch.rand(2, self.settings.batch_size, DRAWS_PER_IMAGE, generator=random)
        both = torch.cat([self._rows(draws[0]), self._rows(draws[1])])
        changed = augment(torch.cat([reals, fakes]), both, self.settings.augment)
        first, second = changed.split(len(reals))
        return first, second

    def _rows(self, batch: Tensor) -> Tensor:
        return batch[self.share.rows(len(batch))].to(self.device, self.dtype, non_blocking=True)

    def _random(self, batch: int, purpose: str) -> torch.Generator:
        return seeded(self.settings.seed, batch, purpose)

    def _average(self, averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        """Move the EMA towards the generator (Karras et al. 2020: half-life in images, with ramp-up)."""
        images_per_update = self.settings.batch_size * self.settings.n_critic
        half_life = self.settings.ema_kimg * 1000
        if self.settings.ema_ramp:
            half_life = min(half_life, int(updates) * images_per_update * self.settings.ema_ramp)
        keep = 0.5 ** (images_per_update / max(half_life, 1e-8))
        move_average(averages, currents, 1 - keep)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")


def move_average(averages: Iterable[Tensor], currents: Iterable[Tensor], share: float) -> None:
    """Move averages towards the current values by that share of the way, in place."""
    pairs = list(zip(averages, currents, strict=True))
    weights = [pair for pair in pairs if pair[0].is_floating_point()]
    if weights:
        torch._foreach_lerp_([average for average, _ in weights], [current for _, current in weights], share)
    for average, current in pairs:
        if not average.is_floating_point():
            average.copy_(current)  # batch counters are counts, not weights


def _knowing(classes: Tensor | None, critic: Callable[..., Tensor]) -> CriticFunction:
    """The critic as a function of images alone, be they one batch of these classes or several in a row."""
    if classes is None:
        return critic
    known = classes

    def judge(images: Tensor) -> Tensor:
        scores: Tensor = critic(images, known.repeat(len(images) // max(1, len(known))))
        return scores

    return judge


def _sums(terms: Terms) -> Terms:
    return {name: values.sum() for name, values in terms.items()}
