"""One critic or generator step on one rank's part of a global batch.

A step depends on the weights, the reals and the batch number, and on nothing else. Every random draw (latents,
interpolation, mirroring, augmentation) is a function of the run's seed and the image's number (`raygan.models.draws`).
So N ranks compute what one process computes on the whole batch, whatever N is, and a resumed run needs no random state
beyond the batch number. (Batch norm is the exception unless it is synchronized: each rank normalizes its own rows.)

The host queues a step's kernels and never waits for the device. On a GPU, it replays recorded steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from raygan.models.averages import MovingAverage
from raygan.models.distributed import Share, distributed
from raygan.models.double_backward import InstanceNorm2d, use_on_gpu
from raygan.models.draws import Batches, Kind
from raygan.models.gan import NetworkSettings, build_critic, build_generator, to_signed
from raygan.models.hardware import autocast, pick_precision, set_up_gpu, to_device
from raygan.models.stages import trained_parameters
from raygan.models.sync_norm import synchronize
from raygan.models.weights import under
from raygan.training.adaptive import AdaptiveShare
from raygan.training.augment import mirror
from raygan.training.draws import augment_pair, step_draws
from raygan.training.objectives import CriticFunction, Terms, at_least_float32
from raygan.training.recording import CudaGraphs, Record, Recorder
from raygan.training.registry import OBJECTIVES
from raygan.training.schedule import learning_rate_share, rates_after

if TYPE_CHECKING:
    from raygan.training.settings import StepOptions


class _Kind(NamedTuple):
    """What the host decides in a step.

    Attributes:
        penalized: whether the critic pays the penalty.
        adapts: whether the share of augmented images is updated.
        generates: whether the generator steps, too.
    """

    penalized: bool
    adapts: bool
    generates: bool


class GanStep:
    """Generator, critic, EMA and optimizers, and the two steps that change them.

    Attributes:
        generator: the network that is trained.
        critic: its opponent.
        ema: moving average of the generator; its `.module` is what users get.
        adaptive: the share of images that are augmented, where it adapts.
        images_seen: real images shown to the critic so far, all ranks together.
        ema_images: images that an inherited EMA counts for in the ramp, beside those of this training.
        draws: kind of the random draws: `critic_draws` and `generator_draws`.
        precision: "bf16" runs convolutions in bfloat16 by autocast; losses, penalty norms, weights and optimizer
            states stay float32. "tf32" is float32 with a GPU's shorter mantissas in products. "fp64" computes
            everything in float64.
        layout: memory format of images and weights.
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
        channels_last: bool | None = None,
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
            channels_last: keep the channels of a pixel together in memory, as GPUs' convolutions want them; by default
                on GPUs, unless the critic normalizes each channel of each image.
        """
        self.networks, self.options, self.total_kimg = networks, options, total_kimg
        self.images_seen = self.ema_images = 0
        self.device = torch.device(device)
        self.share = share or Share()
        self.precision = "fp64" if float64 else pick_precision(options.precision, self.device)
        self.dtype = torch.float64 if float64 else torch.float32
        set_up_gpu(self.precision, deterministic=options.deterministic)
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            generator, critic = build_generator(networks), build_critic(networks)
        if self.device.type == "cuda":
            use_on_gpu(critic)
        if channels_last is None:
            channels_last = self.device.type == "cuda" and not any(
                isinstance(layer, InstanceNorm2d) for layer in critic.modules()
            )
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        place = partial(nn.Module.to, device=self.device, dtype=self.dtype, memory_format=self.layout)
        self.generator, self.critic = place(generator), place(critic)
        if options.sync_batch_norm:
            synchronize(self.generator)
        self.objective = OBJECTIVES.load(options.objective)()
        self.ema = MovingAverage(self.generator, self._keep)
        self.ema.requires_grad_(False).eval()
        betas = (float(options.beta1), float(options.beta2))
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), options.generator_lr, betas, fused=True
        )
        self._trained = trained_parameters(self.critic, networks.architecture, options.freeze_critic)
        self.critic.requires_grad_(False)
        self._let_critic_learn(True)
        self.critic_optimizer = torch.optim.Adam(self._trained, options.critic_lr, betas, fused=True)
        self.adaptive: AdaptiveShare | None = None
        if options.augment_target:
            self.adaptive = AdaptiveShare(options.augment_target, options.batch_size, self.share, self.device)
        self._recorder: Recorder | None = None
        self.use_draws("philox")
        zeros = partial(torch.zeros, 1, device=self.device, dtype=self.dtype)
        z_dim, size = networks.z_dim, networks.image_size
        # Networks without labels ignore the class.
        self._ddp_generator = self._distributed(self.generator, lambda net: net(zeros(z_dim), zeros().long()))
        self._ddp_critic = self._distributed(self.critic, lambda net: net(zeros(3, size, size), zeros().long()))

    def _distributed(self, network: nn.Module, trial: Callable[[nn.Module], Tensor]) -> nn.Module:
        bucket, bf16 = self.options.gradient_bucket, self.options.gradient_precision == "bf16"
        return distributed(network, self.share, trial, bucket_megabytes=bucket, bf16=bf16)

    @property
    def batches(self) -> int:
        """Number of the next global batch of the current size: the first of which no image has been seen."""
        return -(-self.images_seen // self.options.batch_size)

    @property
    def learning_rate_share(self) -> float:
        """The share of both learning rates that is in force now, in [0, 1]."""
        return learning_rate_share(self.options, self.images_seen, self.total_kimg)

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of the generator and the critic now, of which `learning_rate_share` is in force."""
        options = self.options
        return rates_after(options.rate_changes, self.images_seen) or (options.generator_lr, options.critic_lr)

    def settings(self) -> dict[str, Any]:
        """How the networks are stepped, JSON-ready, as checkpoints record it."""
        decided = {"precision": self.precision, "total_kimg": self.total_kimg, "draws": self.draws}
        return {**self.options.plain(), **decided}

    def use_draws(self, kind: Kind) -> None:
        """Take random numbers of this kind from now on; a resumed run keeps those that it began with."""
        self.draws = kind
        batches = Batches(self.options.seed, self.options.batch_size, self.share, self.device, self.dtype)
        self.critic_draws, self.generator_draws = step_draws(kind, batches, self.options, self.networks.z_dim)

    def step(self, reals: Tensor, classes: Tensor | None = None) -> Terms:
        """One critic step, and a generator step after every `n_critic` critic steps.

        Args:
            reals: this rank's rows of the global batch, uint8 (n, 3, S, S) as stored in shards.
            classes: their class numbers, int64 (n,), for conditional networks; fakes are drawn of the same classes.

        Returns:
            This rank's sums of each term over its images, on the device, which is never waited for.
        """
        batch = self.batches
        generates = (batch + 1) % self.options.n_critic == 0
        inputs = {"reals": to_device(reals, self.device)}
        if classes is not None and self.networks.labels:
            inputs["classes"] = to_device(classes, self.device)
        inputs |= {f"critic.{purpose}": values for purpose, values in self.critic_draws.of(batch).items()}
        if generates:
            inputs |= {f"generator.{purpose}": values for purpose, values in self.generator_draws.of(batch).items()}
        penalized = batch % self.options.penalty_every == 0
        adapts = self.adaptive is not None and self.adaptive.decides_after(batch)
        kind = _Kind(penalized, adapts, generates)
        self._set_rates()
        work = partial(self._work, kind)
        terms = self._recorder.run(kind, work, inputs) if self._recorder else work(inputs)
        if generates:
            self.ema.update_parameters(self.generator)
        self.images_seen += self.options.batch_size
        return terms

    def record_steps(self, record: Record | None = None) -> None:
        """From now on replay steps where that is faster: on one GPU.

        Args:
            record: how; by default as CUDA graphs.
        """
        optimizers = self.generator_optimizer, self.critic_optimizer
        if record is None:
            if self.device.type != "cuda" or self.share.world_size > 1:
                return
            record = CudaGraphs(self.device, *optimizers)
        self._recorder = Recorder(record)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device)  # read from memory in each replay

    def sample(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images (n, 3, S, S) of the EMA generator for latents (n, z_dim) and classes (n,)."""
        with torch.no_grad(), autocast(self.device, self.precision):
            images: Tensor = self.ema.module(latents.to(self.device, self.dtype), classes)
        return images.float()

    def scores(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """The critic's scores (n,) of images (n, 3, S, S) in [-1, 1] of classes (n,), which are not augmented."""
        self.critic.eval()
        with torch.no_grad(), autocast(self.device, self.precision):
            scores = _scores_of(self.critic, classes)(images.to(self.device, self.dtype))
        self.critic.train()
        return scores

    def _set_rates(self) -> None:
        share = self.learning_rate_share
        for optimizer, rate in zip((self.generator_optimizer, self.critic_optimizer), self.rates, strict=True):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * share)
                else:
                    group["lr"] = rate * share

    def _work(self, kind: _Kind, inputs: Mapping[str, Tensor]) -> Terms:
        """The part of a step that runs on the device alone."""
        reals, classes = self._prepare_reals(inputs["reals"], inputs.get("critic.mirror")), inputs.get("classes")
        terms = self._critic_step(reals, classes, under(inputs, "critic"), kind)
        if kind.generates:
            terms |= self._generator_step(reals, classes, under(inputs, "generator"))
        return terms

    def _let_critic_learn(self, learns: bool) -> None:
        """Whether backward passes give the critic gradients; its frozen stages never get any."""
        for parameter in self._trained:
            parameter.requires_grad_(learns)

    def _critic_step(self, reals: Tensor, classes: Tensor | None, draws: dict[str, Tensor], kind: _Kind) -> Terms:
        options = self.options
        # Lazy regularization (Karras et al. 2020, appendix B): a rare penalty weighs as much as a steady one.
        weight = options.penalty_weight * options.penalty_every if kind.penalized else 0.0
        with autocast(self.device, self.precision):
            with torch.no_grad():
                fakes = self.generator(draws["latents"], classes).to(self.dtype)
            reals, fakes = augment_pair(reals, fakes, draws, self.options, self.adaptive)
            mix = draws["mix"][:, :, None, None]
            critic = _scores_of(self._ddp_critic, classes)
            losses, terms = self.objective.critic_loss(critic, reals, fakes, mix, weight)
        if self.adaptive:
            self.adaptive.update(terms["certainty"], decide=kind.adapts)
            terms["augmented"] = self.adaptive.state[0].expand(len(losses))
        norm = self._descend(losses, self.critic, self.critic_optimizer)
        return {**_sums(terms), "critic_loss": losses.detach().sum(), "critic_gradient": norm * len(losses)}

    def _generator_step(self, reals: Tensor, classes: Tensor | None, draws: dict[str, Tensor]) -> Terms:
        # The critic only passes gradients on to the images; its own would be thrown away.
        self._let_critic_learn(False)
        with autocast(self.device, self.precision):
            fakes = self._ddp_generator(draws["latents"], classes).to(self.dtype)
            reals, fakes = augment_pair(reals, fakes, draws, self.options, self.adaptive)
            losses, terms = self.objective.generator_loss(_scores_of(self.critic, classes), reals, fakes)
        norm = self._descend(losses, self.generator, self.generator_optimizer)
        self._let_critic_learn(True)
        return {
            **_sums(terms),
            "generator_loss": losses.detach().sum(),
            "generator_gradient": norm * len(losses),
        }

    def _descend(self, losses: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Take a step on the gradient of the global batch's mean loss; returns the gradient's norm before clipping.

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

    def _prepare_reals(self, reals: Tensor, flips: Tensor | None) -> Tensor:
        images = to_signed(reals, self.dtype).contiguous(memory_format=self.layout)
        return images if flips is None else mirror(images, flips[:, 0])

    def _keep(self) -> float:
        """The old EMA's weight in an update (Karras et al. 2020: half-life in images, with ramp-up)."""
        images_per_update = self.options.batch_size * self.options.n_critic
        half_life = self.options.ema_kimg * 1000
        if self.options.ema_ramp:
            # Images up to the last update; this batch's are not counted yet. (Updates may have been of other sizes.)
            averaged = self.ema_images + self.images_seen + self.options.batch_size - images_per_update
            half_life = min(half_life, averaged * self.options.ema_ramp)
        return float(0.5 ** (images_per_update / max(half_life, 1e-8)))


def _scores_of(critic: Callable[..., Tensor], classes: Tensor | None) -> CriticFunction:
    """The critic as a function of images alone: of one batch of these classes, or of several in a row."""

    def scores(images: Tensor) -> Tensor:
        if classes is None:
            return at_least_float32(critic(images))
        return at_least_float32(critic(images, classes.repeat(len(images) // max(1, len(classes)))))

    return scores


def _sums(terms: Terms) -> Terms:
    return {name: values.sum() for name, values in terms.items()}
