"""A training step beside textbook WGAN-GP's: images/s, memory, and the share of the hardware's peak.

1. A `Candidate` is a preset at one precision, or the textbook; a `Part` is a critic step or a full iteration
   (`n_critic` critic steps and a generator step). Every pair waits in its own process, so its memory is its own.
   raygan's processes keep freed memory, as its workers do; the textbook's don't: who writes a training like that
   doesn't tune the allocator.
2. In each round every pair runs for a while, one after another. A round's ratios are taken within the round, and their
   median counts: a machine whose clock drifts slows all alike.
3. Floating-point operations are counted where torch dispatches them, not estimated. The peak is that of the fastest
   product in the same run at the same precision. The textbook's is TF32 on a GPU, torch's default in convolutions.
4. Before anything is timed, the textbook and the preset with the same objective take an iteration from the same weights
   with the same draws, and their losses must agree.

Needs torch alone: this runs where there is no Ray.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

# Private, but documented for extensions like this; a `FlopCounterMode` without module hooks would replace it.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raygan.benchmarks.processes import start
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import TrainStepBenchmarkSettings
from raygan.benchmarks.textbook import TextbookStep
from raygan.errors import RayganError, first_line
from raygan.models.gan import NetworkSettings
from raygan.models.hardware import Precision, computes_bf16, keep_freed_memory, peak_resident_bytes, set_up_gpu
from raygan.settings import load_preset
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep

Part = Literal["critic", "iteration"]
PARTS: tuple[Part, ...] = ("critic", "iteration")

TEXTBOOK = "textbook"

#: The preset whose settings the textbook shares.
_SOURCE = "wgan-gp-128"

#: How far losses from the same weights and draws may differ, as a share of the loss or of 1.
_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "tf32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class Candidate:
    """What is measured: the textbook, or a preset at one precision.

    Attributes:
        name: `TEXTBOOK` or a preset's name.
        networks: size of the networks.
        settings: options of the step.
        precision: that of `settings`.
        device: "cpu" or "cuda".
    """

    name: str
    networks: NetworkSettings
    settings: StepOptions
    precision: Precision
    device: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"


def benchmark(settings: TrainStepBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = _candidates(settings, device)
    precisions = list(dict.fromkeys(candidate.precision for candidate in candidates))
    differences = {each.title: losses_apart(each, candidates[0]) for each in candidates if each.name == _SOURCE}
    for title, difference in differences.items():
        print(f"{title}: the losses of an iteration are within {difference:.0e} of the textbook's")
    peaks = {precision: matrix_peak(device, precision, min(1.0, settings.seconds)) for precision in precisions}
    print("matrix peak: " + ", ".join(f"{name} {peak / 1e12:.2f} TFLOP/s" for name, peak in peaks.items()))
    rows = _measure(settings, candidates)
    for candidate in candidates:
        for part in PARTS:
            row = rows[candidate.title][part]
            row["flops_per_image"] = count_flops(candidate, part)
            flops = row["flops_per_image"] * row["images_per_second"]
            row["share_of_peak"] = flops / peaks[candidate.precision]
            print(
                f"{candidate.title:18} {part:9} {row['images_per_second']:8.1f} images/s  {row['ratio']:5.2f}x  "
                f"{row['peak_megabytes']:6.0f} MB  {row['share_of_peak']:5.1%} of peak"
            )
    result = {
        "machine": machine(),
        "settings": settings.plain(),
        "losses_differ_by": differences,
        "matrix_peak": peaks,
        "rows": rows,
    }
    write_json(settings.json_file, result)
    return result


def _candidates(settings: TrainStepBenchmarkSettings, device: torch.device) -> list[Candidate]:
    """The textbook and each preset at each precision, all at the same size."""
    plain: Precision = "tf32" if device.type == "cuda" else "fp32"  # torch's default in convolutions
    precisions: list[Precision] = [*settings.precisions] or [plain]
    if not settings.precisions and computes_bf16(device):
        precisions.append("bf16")
    found = [candidate_of(TEXTBOOK, _SOURCE, plain, settings, device)]
    for preset in settings.presets:
        found += [candidate_of(preset, preset, precision, settings, device) for precision in precisions]
    return found


def candidate_of(
    name: str, preset: str, precision: Precision, settings: TrainStepBenchmarkSettings, device: torch.device
) -> Candidate:
    values = load_preset(TrainSettings, preset)
    values |= {"batch_size": settings.batch_size, "precision": precision}
    shape = {key: values[key] for key in ("z_dim", "critic_norm", "architecture") if key in values}
    networks = NetworkSettings(settings.image_size, width=settings.width, **shape)
    step = StepOptions(**{name: values[name] for name in StepOptions.model_fields if name in values})
    return Candidate(name, networks, step, precision, device.type)


# ---------------------------------------------------------------- what runs


class Runner:
    """A candidate's part, step by step, on reals already in memory."""

    def __init__(self, candidate: Candidate, part: Part):
        self.candidate, self.part, self.batch = candidate, part, 0
        self._critic_steps = candidate.settings.n_critic if part == "iteration" else 1
        settings, size = candidate.settings, candidate.networks.image_size
        shape = (settings.batch_size, 3, size, size)
        self.reals = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        self.reals = self.reals.to(candidate.device)
        if candidate.name == TEXTBOOK:
            self._textbook = TextbookStep(candidate.networks, settings, candidate.device)
            self._leader: GanStep | None = None
            self.step: Callable[[], list[Tensor | float]] = self._textbook_step
        else:
            if part == "critic":
                settings = settings.model_copy(update={"n_critic": 2**62})
            self._ours = GanStep(candidate.networks, settings, candidate.device)
            self.step = self._our_step

    @property
    def images(self) -> int:
        """Number of reals that the critic sees in one run."""
        return self._critic_steps * self.candidate.settings.batch_size

    def run(self) -> list[Tensor | float]:
        """Take a critic step or a full iteration, and return its losses in order."""
        return [loss for _ in range(self._critic_steps) for loss in self.step()]

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


def losses_apart(ours: Candidate, textbook: Candidate) -> float:
    """The largest difference of losses from the same weights.

    Raises:
        RayganError: it is more than rounding.
    """
    mine, its = Runner(ours, "iteration"), Runner(textbook, "iteration")
    worst = 0.0
    # TF32 rounds by more than the two formulas may differ.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(ours.settings.n_critic):
            its.follow(mine)
            for loss, wanted in zip(mine.step(), its.step(), strict=True):
                worst = max(worst, abs(float(loss) - float(wanted)) / max(1.0, abs(float(wanted))))
    if not worst <= _TOLERANCE[ours.precision]:  # NaN, too
        raise RayganError(f"{ours.title}: its losses differ from the textbook's by {worst:.1e}: not the same objective")
    return worst


# ---------------------------------------------------------------- how it is measured


def _measure(settings: TrainStepBenchmarkSettings, candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """images_per_second, ratio to the textbook and peak_megabytes, by candidate and part."""
    places = [(candidate, part) for candidate in candidates for part in PARTS]
    rates: dict[tuple[str, Part], list[float]] = {(candidate.title, part): [] for candidate, part in places}
    rows: dict[str, dict[str, Any]] = {candidate.title: {} for candidate in candidates}
    with _processes(places) as pipes:
        for number in range(settings.rounds):
            for (candidate, part), pipe in zip(places, pipes, strict=True):
                rates[candidate.title, part].append(_ask(pipe, settings.seconds))
            print(f"round {number + 1} of {settings.rounds}", file=sys.stderr)
        memory = [_ask(pipe, 0.0) for pipe in pipes]
    for (candidate, part), peak in zip(places, memory, strict=True):
        own, yardstick = rates[candidate.title, part], rates[candidates[0].title, part]
        rows[candidate.title][part] = {
            "images_per_second": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, yardstick, strict=True)),
            "peak_megabytes": peak,
        }
    return rows


@contextmanager
def _processes(places: Sequence[tuple[Candidate, Part]]) -> Iterator[list[Connection]]:
    """A warmed-up process at the other end of a pipe for each candidate and part."""
    started = []
    for candidate, part in places:
        process, pipe = start(_serve, candidate, part)
        started.append((process, pipe))
        _receive(pipe)  # one at a time, or they would spoil each other's warm-up
    try:
        yield [pipe for _, pipe in started]
    finally:
        for _, pipe in started:
            pipe.close()
        for process, _ in started:
            process.join()


def _ask(pipe: Connection, seconds: float) -> float:
    pipe.send(seconds)
    return _receive(pipe)


def _receive(pipe: Connection) -> float:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RayganError(
            "a process of the benchmark was killed, probably for lack of memory: lower --batch-size or --width"
        ) from None
    if isinstance(answer, RayganError):
        raise RayganError(f"a process of the benchmark ended: {first_line(answer)}")
    return float(answer)


def _serve(pipe: Connection, candidate: Candidate, part: Part) -> None:
    """For each number of seconds received, run that long and send images/s; for 0, send the peak memory in MB."""
    process = psutil.Process()
    before = process.memory_info().rss
    if candidate.name != TEXTBOOK:
        keep_freed_memory()
    runner = Runner(candidate, part)
    runner.run()
    runner.run()
    pipe.send(0.0)
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(_rate(runner, seconds) if seconds else _peak_bytes(before) / 1e6)


def _rate(runner: Runner, seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        runner.run()
        # Without this wait, a GPU's loop would measure how fast kernels are launched.
        if runner.candidate.device == "cuda":
            torch.cuda.synchronize()
        done += runner.images
    return done / (time.perf_counter() - start)


def _peak_bytes(before: int) -> int:
    """Peak memory in bytes: the GPU's, or this process's growth since `before`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes() - before


def matrix_peak(device: torch.device, precision: Precision, seconds: float) -> float:
    """Measure the FLOP/s of the fastest of some square matrix products and a convolution.

    The convolution is there since another library computes it on a CPU: with AVX-512 on AMD's it is twice as fast.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    cpu = device.type == "cpu"
    draw = partial(torch.randn, device=device, dtype=dtype)
    set_up_gpu(precision, deterministic=False)
    products: list[tuple[float, Callable[[], Tensor]]] = [
        (2 * side**3, partial(torch.mm, draw(side, side), draw(side, side)))
        for side in ((1024, 2048, 4096) if cpu else (4096, 8192, 16384))
    ]
    images, channels, side = (16, 256, 32) if cpu else (64, 512, 64)
    layout = torch.channels_last
    pictures = draw(images, channels, side, side).contiguous(memory_format=layout)
    kernels = draw(channels, channels, 3, 3).contiguous(memory_format=layout)
    taps = 2 * images * side**2 * channels**2 * 9
    products.append((taps, partial(torch.conv2d, pictures, kernels, padding=1)))
    best = 0.0
    for operations, product in products:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            began = time.perf_counter()
            product()
            if not cpu:
                torch.cuda.synchronize()
            best = max(best, operations / (time.perf_counter() - began))
    return best


def count_flops(candidate: Candidate, part: Part) -> float:
    """Floating-point operations of convolutions and products per real image, as torch dispatches them."""
    runner = Runner(candidate, part)
    # A lazy penalty comes once in `penalty_every` critic steps.
    repeats = 1 if candidate.name == TEXTBOOK else candidate.settings.penalty_every
    with _Operations() as counter:
        for _ in range(repeats):
            runner.run()
    return float(counter.count) / (repeats * runner.images)


class _Operations(TorchDispatchMode):
    """Counts by torch's own formulas. (Its `FlopCounterMode` hooks modules, which a gradient penalty can't stand.)"""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out
