"""One optimizer step of GoogLeNet on one rank's part of a global batch.

As in `raygan.training.step`, a step depends only on the weights, the photos and the batch number. Flips and shifts are
functions of the seed and the image's number; dropout is seeded per step and rank. So a resumed run needs no random
state beyond the images seen, even if its batches have another size now. The host never waits for the device.

The loss is the paper's (section 5): cross-entropy of the head plus 0.3 times that of each auxiliary head. With AdamW
(Loshchilov and Hutter 2017), the learning rate warms up linearly and then falls linearly to zero. Validation and users
get a moving average of the weights (Polyak and Juditsky 1992), which varies less between epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from raygan.errors import RayganError
from raygan.models.averages import move_average
from raygan.models.distributed import Share, distributed
from raygan.models.draws import Batches, Draws, ImageDraws, Kind, SerialDraws
from raygan.models.googlenet import build_googlenet, to_input
from raygan.models.hardware import autocast, pick_precision, set_up_gpu, to_device
from raygan.models.latents import seeded
from raygan.models.sync_norm import synchronize
from raygan.models.weights import fill_optimizer, named, optimizer_tensors, under

if TYPE_CHECKING:
    from raygan.classifier.settings import ClassifierOptions

#: Steps between two updates of the moving average.
_EMA_EVERY = 4

#: Images in one forward pass of `ClassifierStep.probabilities`.
_AT_ONCE = 64


class ClassifierStep:
    """A GoogLeNet in training, with its optimizer and the moving average of its weights.

    Attributes:
        net: the network being trained.
        ema: its moving average, in evaluation mode, which users get; `net` itself if `ema_ramp` is 0.
        total: length of the learning rate schedule, in images.
        images_seen: training images seen so far, by all ranks together.
        draws: kind of the random draws.
    """

    def __init__(
        self,
        labels: int,
        options: ClassifierOptions,
        total: int,
        device: torch.device | str = "cpu",
        share: Share | None = None,
        weights: dict[str, Tensor] | None = None,
        *,
        sync_batch_norm: bool = False,
        float64: bool = False,
    ):
        """Build the network. More than one rank needs a `torch.distributed` process group.

        Args:
            labels: number of classes.
            options: hyperparameters; precision "auto" is decided for the device.
            total: length of the learning rate schedule, in images; whole batches.
            device: where the network lives.
            share: this rank's part of each batch; by default all of it.
            weights: initial weights by name, such as `load_imagenet_weights` gives; others stay random.
            sync_batch_norm: compute batch statistics over all ranks.
            float64: compute everything in float64, to check the arithmetic.
        """
        self.options, self.total, self.images_seen = options, total, 0
        self.device, self.share = torch.device(device), share or Share()
        self.precision = "fp64" if float64 else pick_precision(options.precision, self.device)
        set_up_gpu(self.precision, deterministic=options.deterministic)
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            self.net = build_googlenet(labels, auxiliary=options.auxiliary_weight > 0)
        if weights is not None:
            self.net.load_state_dict({**self.net.state_dict(), **weights})
        self.dtype = torch.float64 if float64 else torch.float32
        self.net.to(self.device, self.dtype, memory_format=torch.channels_last).train()
        if sync_batch_norm:
            synchronize(self.net)
        self.use_draws("philox")
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval() if options.ema_ramp else self.net
        images = torch.zeros(2, 3, 64, 64, device=self.device, dtype=self.dtype)
        self._ddp = distributed(self.net, self.share, lambda net: torch.stack(self._heads(net(images))))

    @property
    def batches(self) -> int:
        """Number of the next global batch of the current size: the first of which no image has been seen."""
        return -(-self.images_seen // self.options.batch_size)

    def step(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: uint8 (n, 3, S, S), this rank's rows of the global batch.
            targets: int64 (n,), their classes.

        Returns:
            Sums over this rank's images: `loss` (of the main head) and `train_accuracy`.
        """
        batch, options = self.batches, self.options
        pixels = to_input(self._augment(to_device(images, self.device), batch), images.shape[-1]).to(self.dtype)
        targets = to_device(targets, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * self.rate(self.images_seen)
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropout_seed(batch), autocast(self.device, self.precision):
            outputs = self._ddp(pixels)
        heads = self._heads(outputs)
        losses = [
            F.cross_entropy(head.to(self.dtype), targets, label_smoothing=options.label_smoothing, reduction="sum")
            for head in heads
        ]
        total = losses[0] + options.auxiliary_weight * sum(losses[1:], torch.zeros((), device=self.device))
        # DDP averages gradients over ranks; this factor turns the average of sums into the global mean.
        (total * (self.share.world_size / options.batch_size)).backward()
        self.optimizer.step()
        self.images_seen += options.batch_size
        since = self.batches % _EMA_EVERY
        # Also at the end: training shorter than _EMA_EVERY would otherwise keep its initial weights.
        if not since or self.images_seen >= self.total:
            self._average(since or _EMA_EVERY)
        correct = (heads[0].detach().argmax(1) == targets).sum()
        return {"loss": losses[0].detach(), "train_accuracy": correct.float()}

    def use_draws(self, kind: Kind) -> None:
        """Take random numbers of this kind from now on; a resumed run keeps those that it began with."""
        self.draws = kind
        batches = Batches(self.options.seed, self.options.batch_size, self.share, self.device, torch.float32)
        place = {"place": 3}
        self._draws: ImageDraws
        if kind == "philox":
            self._draws = Draws(batches, "classify", normals={}, uniforms=place)
        else:
            self._draws = SerialDraws(batches, {"classify": place})

    def rate(self, images: int) -> float:
        """The learning rate after this many images, as a share of the peak, 0 to 1."""
        done, batches = images / self.options.batch_size, self.total / self.options.batch_size
        rising = max(1.0, self.options.warmup * batches)
        return min((done + 1) / rising, max(0.0, (batches - done) / max(1.0, batches - rising)))

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities by the current moving average, float32 (n, labels) on the CPU, of uint8 images."""
        self.ema.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            parts = [
                self.ema(to_input(part.to(self.device), part.shape[-1]).to(self.dtype)).float().softmax(1).cpu()
                for part in images.split(_AT_ONCE)
            ]
        self.net.train()
        return torch.cat(parts) if parts else torch.empty(0, self.net.fc.out_features)

    def average_statistics(self) -> None:
        """Average the running batch statistics over all ranks. A collective call."""
        if self.share.world_size > 1:
            for buffer in dict.fromkeys([*self.net.buffers(), *self.ema.buffers()]):
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.share.world_size

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs besides `images_seen`."""
        ema = {} if self.ema is self.net else named("ema", self.ema.state_dict())
        return named("net", self.net.state_dict()) | ema | named("optimizer", optimizer_tensors(self.optimizer))

    def load_state(self, tensors: dict[str, Tensor], images_seen: int) -> None:
        """Restore what `state` returned after `images_seen` images.

        Raises:
            RayganError: the state belongs to another network.
        """
        net = under(tensors, "net")
        try:
            self.net.load_state_dict(net)
            if self.ema is not self.net:
                # A state saved without an average starts one here.
                self.ema.load_state_dict(under(tensors, "ema") or net)
        except RuntimeError:
            raise RayganError("the checkpoint belongs to a classifier of other labels or heads") from None
        fill_optimizer(self.optimizer, under(tensors, "optimizer"))
        self.images_seen = images_seen

    def _average(self, since: int) -> None:
        """Move the average, last moved `since` batches ago; its half-life grows, to forget early weights sooner."""
        if self.ema is self.net:
            return
        done = self.images_seen / self.options.batch_size
        keep = 0.5 ** (since / max(1.0, self.options.ema_ramp * done))
        move_average(self.ema.state_dict().values(), self.net.state_dict().values(), keep)

    def _augment(self, images: Tensor, batch: int) -> Tensor:
        """This rank's images, flipped and shifted."""
        reach = round(self.options.shift * images.shape[-1])
        draws = self._draws.of(batch)["place"]
        return flip_and_shift(images, draws[: len(images)], reach=reach, mirror=self.options.mirror)

    def _heads(self, outputs: Any) -> list[Tensor]:
        """The network's outputs as logits (n, labels): the main head's, then the auxiliary heads' if they train."""
        auxiliary = self.options.auxiliary_weight > 0
        return [outputs.logits, outputs.aux_logits2, outputs.aux_logits1] if auxiliary else [outputs]

    @contextmanager
    def _dropout_seed(self, batch: int) -> Iterator[None]:
        # By default this would save and restore the random states of all of the machine's GPUs.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seeded(self.options.seed, batch, f"dropout {self.share.rank}").initial_seed())
            yield


def flip_and_shift(images: Tensor, draws: Tensor, *, reach: int, mirror: bool) -> Tensor:
    """Flip images left to right and shift them, reflecting what comes in at the edge.

    Args:
        images: uint8 (n, 3, S, S).
        draws: uniform (n, 3) in [0, 1): flip, shift down, shift right.
        reach: largest shift either way, in px.
        mirror: whether to flip at all.

    Returns:
        uint8 (n, 3, S, S), channels last in memory.
    """
    count, size = len(images), images.shape[-1]
    shifts = (draws[:, 1:] * (2 * reach + 1)).long().clamp_(max=2 * reach) - reach
    places = torch.arange(size, device=images.device)
    rows, columns = places + shifts[:, :1], places + shifts[:, 1:]
    if mirror:
        columns = torch.where(draws[:, :1] < 0.5, size - 1 - columns, columns)
    rows, columns = _reflected(rows, size), _reflected(columns, size)
    batch = torch.arange(count, device=images.device)
    picked = images[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
