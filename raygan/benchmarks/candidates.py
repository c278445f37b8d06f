"""What the benchmarks of a step run and count: presets and the textbook. Needs torch alone.

A `Candidate` is a preset at one precision, or the textbook; a `Runner` takes its critic steps or its full iterations on
photos in memory. `count_operations` counts what torch dispatches, and says how long that takes at best on hardware
whose arithmetic and memory have measured speeds (a roofline, Williams et al. 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

# Private, but documented for extensions like this; a `FlopCounterMode` without module hooks would replace it.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from raygan.benchmarks.textbook import TextbookStep
from raygan.errors import RayganError
from raygan.models.gan import NetworkSettings
from raygan.models.hardware import Precision, set_up_gpu
from raygan.training.recording import RUNS_BEFORE
from raygan.training.step import GanStep

if TYPE_CHECKING:  # needs pydantic
    from raygan.training.settings import StepOptions

Part = Literal["critic", "iteration"]
PARTS: tuple[Part, ...] = ("critic", "iteration")

TEXTBOOK = "textbook"

#: The preset whose settings the textbook shares.
SOURCE = "wgan-gp-128"

#: How far losses from the same weights and draws may differ, as a share of the loss or of 1: in float64, where nothing
#: but the formula counts, and by rounding. (At 64 px, the penalty of wgan-gp-128 amplifies it: interpolates that differ
#: in their last bit have changed the losses of torch's own layers by 1e-5, and of whole steps by 2e-4.)
_EXACT = 1e-9
_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "tf32": 1e-3, "bf16": 2e-2}


@dataclass(frozen=True)
class Candidate:
    """What is measured: the textbook, or a preset at one precision.

    Attributes:
        name: `TEXTBOOK` or a preset's name.
        networks: size of the networks.
        settings: options of the step.
        precision: that of `settings`.
        device: "cpu" or "cuda".
        recorded: whether a GPU replays recorded steps, as in a training; the textbook's are never recorded.
    """

    name: str
    networks: NetworkSettings
    settings: StepOptions
    precision: Precision
    device: str
    recorded: bool = True

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}{'' if self.recorded else ', not recorded'}"


class Runner:
    """A candidate's part, step by step, on reals already in memory."""

    def __init__(self, candidate: Candidate, part: Part, *, float64: bool = False):
        self.candidate, self.part, self.batch = candidate, part, 0
        self._critic_steps = candidate.settings.n_critic if part == "iteration" else 1
        settings, size = candidate.settings, candidate.networks.image_size
        shape = (settings.batch_size, 3, size, size)
        self.reals = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        self.reals = self.reals.to(candidate.device)
        if candidate.name == TEXTBOOK:
            dtype = torch.float64 if float64 else torch.float32
            self._textbook = TextbookStep(candidate.networks, settings, candidate.device, dtype)
            self._leader: GanStep | None = None
            self.step: Callable[[], list[Tensor | float]] = self._textbook_step
        else:
            if part == "critic":
                settings = settings.model_copy(update={"n_critic": 2**62})
            self._ours = GanStep(candidate.networks, settings, candidate.device, float64=float64)
            if candidate.recorded:
                self._ours.record_steps()
            self.step = self._our_step

    @property
    def images(self) -> int:
        """Number of reals that the critic sees in one run."""
        return self._critic_steps * self.candidate.settings.batch_size

    def run(self) -> list[Tensor | float]:
        """Take a critic step or a full iteration, and return its losses in order."""
        return [loss for _ in range(self._critic_steps) for loss in self.step()]

    def warm_up(self) -> None:
        """Run until libraries have chosen their kernels and, on a GPU, every kind of step has been recorded."""
        for _ in range(
            2 if self.candidate.device == "cpu" else (RUNS_BEFORE + 1) * self.candidate.settings.penalty_every
        ):
            self.run()

    def follow(self, ours: Runner) -> None:
        """As the textbook, continue from the weights of raygan's networks, with its draws."""
        self._leader = ours._ours
        self._textbook.generator.load_state_dict(ours._ours.generator.state_dict())
        self._textbook.critic.load_state_dict(ours._ours.critic.state_dict())

    def _our_step(self) -> list[Tensor | float]:
        terms = self._ours.step(self.reals)
        losses = [terms[name] for name in ("critic_loss", "generator_loss") if name in terms]
        return [loss / self.candidate.settings.batch_size for loss in losses]

    def _textbook_step(self) -> list[Tensor | float]:
        batch = self.batch
        self.batch += 1
        critic: dict[str, Tensor] = self._leader.critic_draws.of(batch) if self._leader else {}
        generator: dict[str, Tensor] = self._leader.generator_draws.of(batch) if self._leader else {}
        losses: list[Tensor | float] = [
            self._textbook.critic_step(self.reals, critic.get("latents"), critic.get("mix"))
        ]
        if self.part == "iteration" and self.batch % self.candidate.settings.n_critic == 0:
            losses.append(self._textbook.generator_step(generator.get("latents")))
        return losses


def losses_apart(ours: Candidate, textbook: Candidate, *, float64: bool = False) -> float:
    """The largest difference of losses from the same weights and draws, as a share of the loss or of 1.

    Args:
        ours: raygan's.
        textbook: the textbook's, with the same settings.
        float64: compute both in float64, whatever their precision.
    """
    ours = replace(ours, recorded=False)
    mine, its = Runner(ours, "iteration", float64=float64), Runner(textbook, "iteration", float64=float64)
    worst = 0.0
    # TF32 rounds by more than the two formulas may differ.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(ours.settings.n_critic):
            its.follow(mine)
            for loss, wanted in zip(mine.step(), its.step(), strict=True):
                worst = max(worst, abs(float(loss) - float(wanted)) / max(1.0, abs(float(wanted))))
    return worst


def check_objective(ours: Candidate, textbook: Candidate) -> None:
    """Raise RayganError unless both have the same losses in float64, whatever the precision of raygan's."""
    apart = losses_apart(ours, textbook, float64=True)
    if not apart <= _EXACT:  # NaN, too
        raise RayganError(
            f"{ours.name}: its losses differ from the textbook's by {apart:.1e} in float64: not the same objective"
        )


def check_losses(ours: Candidate, textbook: Candidate) -> float:
    """`losses_apart` at raygan's own precision. Raises RayganError if that is more than rounding."""
    apart = losses_apart(ours, textbook)
    if not apart <= _TOLERANCE[ours.precision]:  # NaN, too
        raise RayganError(f"{ours.title}: its losses differ from the textbook's by {apart:.1e}: more than rounding")
    return apart


def rate(runner: Runner, seconds: float) -> float:
    """Real images per second at the candidate's precision, which another runner of this process may have changed."""
    device = runner.candidate.device
    set_up_gpu(runner.candidate.precision, deterministic=False)
    done, start = 0, now(device)
    while time.perf_counter() - start < seconds:
        runner.run()
        done += runner.images
    return done / (now(device) - start)


def now(device: str) -> float:
    """Seconds on a clock, read when the device has done all that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_peak(device: torch.device, precision: Precision, seconds: float) -> float:
    """Measure the FLOP/s of the fastest of some square matrix products and a convolution.

    The convolution is there since another library computes it on a CPU: with AVX-512 on AMD's it is twice as fast.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    cpu = device.type == "cpu"
    draw = partial(torch.randn, device=device, dtype=dtype)
    set_up_gpu(precision, deterministic=False)
    images, channels, side = (16, 256, 32) if cpu else (64, 512, 64)
    layout = torch.channels_last
    pictures = draw(images, channels, side, side).contiguous(memory_format=layout)
    kernels = draw(channels, channels, 3, 3).contiguous(memory_format=layout)
    taps = 2 * images * side**2 * channels**2 * 9
    products: list[tuple[float, Callable[[], Tensor]]] = [(taps, partial(torch.conv2d, pictures, kernels, padding=1))]
    products += [
        (2 * side**3, partial(torch.mm, draw(side, side), draw(side, side)))
        for side in ((1024, 2048, 4096) if cpu else (4096, 8192, 16384))
    ]
    best = 0.0
    for operations, product in products:
        start = began = now(device.type)
        while began - start < seconds:
            product()
            took, began = now(device.type) - began, time.perf_counter()
            best = max(best, operations / took)
        if began - start > 10 * seconds:
            break  # larger ones would take much longer than asked for
    return best


@dataclass
class Operations:
    """What torch dispatched for a number of real images.

    Attributes:
        images: how many.
        calls: floating-point operations and bytes of each call; only convolutions and products count as operations.
    """

    images: int
    calls: list[tuple[float, float]] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Operations per image."""
        return sum(flops for flops, _ in self.calls) / self.images

    def images_per_second(self, peak: float, bandwidth: float) -> float:
        """Images/s if each call took only what its operations at `peak` or its bytes at `bandwidth` take."""
        return self.images / sum(max(flops / peak, size / bandwidth) for flops, size in self.calls)


def count_operations(candidate: Candidate, part: Part) -> Operations:
    """Count what a part dispatches."""
    runner = Runner(replace(candidate, recorded=False), part)
    # A lazy penalty comes once in `penalty_every` critic steps.
    repeats = 1 if candidate.name == TEXTBOOK else candidate.settings.penalty_every
    found = Operations(repeats * runner.images)
    with _Counter(found):
        for _ in range(repeats):
            runner.run()
    return found


class _Counter(TorchDispatchMode):
    """Counts by torch's own formulas. (Its `FlopCounterMode` hooks modules, which a gradient penalty can't stand.)"""

    def __init__(self, found: Operations) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        taken, given = _tensors((args, kwargs)), _tensors(out)
        storages = {each.untyped_storage().data_ptr() for each in taken}
        writes = func._schema.is_mutable
        if writes or any(each.untyped_storage().data_ptr() not in storages for each in given):  # else it is a view
            self._found.calls.append((flops, sum(map(_bytes, taken)) + sum(map(_bytes, given))))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _bytes(values: Tensor) -> int:
    """Bytes to read or write; an expanded tensor has fewer than elements."""
    return min(values.numel() * values.element_size(), values.untyped_storage().nbytes())
