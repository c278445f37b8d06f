"""Fitting GoogLeNet: one optimiser step on one rank's part of a global batch.

As in `raygan.training.step`, a step depends on the weights, the photos and the batch's number, and on nothing else:
flips and shifts are drawn for the whole global batch from a seed and that number, each rank takes its rows, and
dropout is seeded for each step and rank. So a resumed run needs no random state but the batch number.

The loss is the paper's (section 5): cross-entropy of the head plus 0.3 times that of each auxiliary head. The
learning rate rises linearly for a few steps and falls linearly to zero, with AdamW (Loshchilov and Hutter 2017).
Examined and kept is a moving average of the weights (Polyak and Juditsky 1992), which swings less between epochs.
"""

from __future__ import annotations

import copy
import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from raygan.errors import RayganError, first_line
from raygan.models.distributed import Share, distributed
from raygan.models.googlenet import build_googlenet, to_input
from raygan.models.latents import seeded
from raygan.models.sync_norm import synchronise
from raygan.training.step import move_average

#: Steps between two updates of the moving average.
_EMA_EVERY = 4


@dataclass(frozen=True)
class FitSettings:
    """How the classifier is fitted.

    batch_size: images in the global batch, all ranks together.
    learning_rate, weight_decay: AdamW's; the rate is the highest of the schedule.
    warmup: share of the batches in which the rate rises, 0 to 1.
    label_smoothing: share of each target that is spread over all labels, 0 to 1.
    auxiliary_weight: of each auxiliary head's loss; 0 leaves the heads out.
    mirror: flip images at random.
    shift: largest random shift, as a share of the side.
    ema_ramp: half-life of the weights' moving average, as a share of the batches so far; 0 for none.
    precision: "bf16" computes convolutions in bfloat16 by autocast; "fp64" everything in float64, to check the
        arithmetic.
    sync_batch_norm: batch statistics of all ranks together.
    seed: of the weights and every random draw.
    """

    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.3
    mirror: bool = True
    shift: float = 0.0625
    ema_ramp: float = 0.05
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    sync_batch_norm: bool = False
    seed: int = 0


class ClassifierFit:
    """A GoogLeNet under way, with its optimiser.

    batches: length of the schedule. start: ImageNet weights to begin with (see `imagenet_start`). With
    ``share.world_size > 1`` a `torch.distributed` process group must be there.

    Attributes: `net` (the bare network), `ema` (its moving average, in evaluation mode: what users get; without one it
    is `net`), `batches_done`.
    """

    def __init__(
        self,
        labels: int,
        settings: FitSettings,
        batches: int,
        device: torch.device | str = "cpu",
        share: Share | None = None,
        start: dict[str, Tensor] | None = None,
    ):
        self.settings, self.batches = settings, batches
        self.device, self.share = torch.device(device), share or Share()
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.net = build_googlenet(labels, auxiliary=settings.auxiliary_weight > 0)
        if start is not None:
            self.net.load_state_dict({**self.net.state_dict(), **start})
        self.dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        self.net.to(self.device, self.dtype, memory_format=torch.channels_last).train()
        if settings.sync_batch_norm:
            synchronise(self.net)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval() if settings.ema_ramp else self.net
        self.batches_done = 0
        images = torch.zeros(2, 3, 64, 64, device=self.device, dtype=self.dtype)
        self._ddp = distributed(self.net, self.share, lambda net: torch.stack(self._heads(net(images))))

    def step(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """One step on this rank's rows of a global batch: uint8 (n, 3, S, S) and classes int64 (n,).

        Returns sums over this rank's images of `loss` (of the head alone) and `train_accuracy`.
        """
        batch, settings = self.batches_done, self.settings
        pixels = to_input(self._changed(images, batch).to(self.device), images.shape[-1]).to(self.dtype)
        targets = targets.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self.rate(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropout_seed(batch), self._autocast():
            outputs = self._ddp(pixels)
        heads = self._heads(outputs)
        losses = [
            F.cross_entropy(head.to(self.dtype), targets, label_smoothing=settings.label_smoothing, reduction="sum")
            for head in heads
        ]
        total = losses[0] + settings.auxiliary_weight * sum(losses[1:], torch.zeros((), device=self.device))
        # DDP divides the sum of the ranks' gradients by their number; this makes it the global mean.
        (total * (self.share.world_size / settings.batch_size)).backward()
        self.optimizer.step()
        self.batches_done += 1
        since = self.batches_done % _EMA_EVERY
        # At the end too: a shorter training would be kept with the weights that it began with.
        if not since or self.batches_done == self.batches:
            self._average(since or _EMA_EVERY)
        right = (heads[0].detach().argmax(1) == targets).sum()
        return {"loss": losses[0].detach(), "train_accuracy": right.float()}

    def rate(self, batch: int) -> float:
        """The learning rate of a batch, as a share of the highest."""
        rising = max(1.0, self.settings.warmup * self.batches)
        return min((batch + 1) / rising, max(0.0, (self.batches - batch) / max(1.0, self.batches - rising)))

    def probabilities(self, images: Tensor) -> Tensor:
        """float32 (n, labels) of uint8 images by the moving average as it is now, on the CPU."""
        self.ema.eval()
        with torch.inference_mode(), self._autocast():
            parts = [
                self.ema(to_input(part.to(self.device), part.shape[-1]).to(self.dtype)).float().softmax(1).cpu()
                for part in images.split(64)
            ]
        self.net.train()
        return torch.cat(parts) if parts else torch.empty(0, self.net.fc.out_features)

    def share_statistics(self) -> None:
        """Give all ranks the mean of their running batch statistics. A collective call."""
        if self.share.world_size > 1:
            for buffer in dict.fromkeys([*self.net.buffers(), *self.ema.buffers()]):
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.share.world_size

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides `batches_done`."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        if self.ema is not self.net:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], batches_done: int) -> None:
        """Bring the fit to the state that `state` gave. Raises RayganError if it is another network's."""
        nets = {
            kind: {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
            for kind in ("net.", "ema.")
        }
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                states.setdefault(int(number), {})[key] = value
        try:
            self.net.load_state_dict(nets["net."])
            if self.ema is not self.net:
                # A fit that was put away without an average begins one here.
                self.ema.load_state_dict(nets["ema."] or nets["net."])
        except RuntimeError:
            raise RayganError("the checkpoint belongs to a classifier of other labels or heads") from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.batches_done = batches_done

    def _average(self, since: int) -> None:
        """Move the average towards the network; a half-life that grows leaves a young network behind sooner.

        since: batches since it was last moved.
        """
        if self.ema is self.net:
            return
        share = 1 - 0.5 ** (since / max(1.0, self.settings.ema_ramp * self.batches_done))
        move_average(self.ema.state_dict().values(), self.net.state_dict().values(), share)

    def _changed(self, images: Tensor, batch: int) -> Tensor:
        """This rank's images, flipped and shifted by the draws of the global batch."""
        settings = self.settings
        rows = self.share.rows(settings.batch_size)
        draws = torch.rand(settings.batch_size, 3, generator=seeded(settings.seed, batch, "classify"))[rows]
        reach = round(settings.shift * images.shape[-1])
        return flip_and_shift(images, draws[: len(images)], reach=reach, mirror=settings.mirror)

    def _heads(self, outputs: Any) -> list[Tensor]:
        """Logits (n, labels) of the head and, if they are trained, the auxiliary ones, of what the network gave."""
        auxiliary = self.settings.auxiliary_weight > 0
        return [outputs.logits, outputs.aux_logits2, outputs.aux_logits1] if auxiliary else [outputs]

    @contextmanager
    def _dropout_seed(self, batch: int) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(seeded(self.settings.seed, batch, f"dropout {self.share.rank}").initial_seed())
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")


def flip_and_shift(images: Tensor, draws: Tensor, *, reach: int, mirror: bool) -> Tensor:
    """uint8 images (n, 3, S, S), each flipped left to right or not and shifted by up to `reach` px either way.

    draws: uniform (n, 3) in [0, 1): flip, shift down, shift right. What comes in at the edge is reflected.
    """
    count, size = len(images), images.shape[-1]
    shifts = (draws[:, 1:] * (2 * reach + 1)).long().clamp_(max=2 * reach) - reach
    places = torch.arange(size)
    rows, columns = places + shifts[:, :1], places + shifts[:, 1:]
    if mirror:
        columns = torch.where(draws[:, :1] < 0.5, size - 1 - columns, columns)
    rows, columns = _reflected(rows, size), _reflected(columns, size)
    picked = images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # (n, S, S, 3) in memory, which is channels last


def _reflected(places: Tensor, size: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def imagenet_start(path: str | None, *, auxiliary: bool) -> dict[str, Tensor]:
    """ImageNet weights to start from, without the last layers: from a file, or by torchvision's own download.

    Raises RayganError if they can't be had or aren't GoogLeNet's.
    """
    weights = _read(path) if path else _download()
    own = build_googlenet(2, auxiliary=auxiliary).state_dict()
    wanted = {name for name in own if not name.startswith("fc.") and ".fc2." not in name}
    found = {name: value for name, value in weights.items() if name in wanted}
    needed = {name for name in wanted if not name.startswith("aux")}
    wrong = [name for name in found if found[name].shape != own[name].shape]
    if not needed <= set(found) or wrong:
        raise RayganError(f"--weights: {path or 'the download'} does not hold GoogLeNet's weights")
    broken = [name for name, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise RayganError(f"--weights: {path or 'the download'} holds weights that are not numbers, in {broken[0]}")
    return found


def _read(path: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.endswith(".safetensors"):
            return dict(load_file(path))
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of weight files raise many kinds
        reason = first_line(error)
        raise RayganError(f"--weights: {path} does not hold GoogLeNet's weights: {reason}") from None
    return dict(weights) if isinstance(weights, dict) else {}


def _download() -> dict[str, Tensor]:
    from torchvision.models import GoogLeNet_Weights

    try:
        return dict(GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
    # No network, no such address, no room for the file; cut short; with another checksum.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise RayganError(
            f"--weights: ImageNet weights can't be downloaded ({reason}): give the path of a file that holds them, "
            f"or leave --weights out to train from scratch"
        ) from None
