"""A training step beside textbook WGAN-GP's: images/s, memory, and the share of the hardware's peak.

1. A `Candidate` is a preset at one precision, or the textbook; a `Part` is a critic step or a full iteration
   (`n_critic` critic steps and a generator step). Every pair waits in its own process, so its memory is its own.
   raygan's processes keep freed memory, as its workers do; the textbook's don't: people who write such a training
   don't tune the allocator.
2. In each round every pair runs for a while, one after another. A round's ratios are taken within the round, and their
   median counts: a machine whose clock drifts slows all alike.
3. Floating-point operations are counted where torch dispatches them, not estimated. The peak is that of the fastest
   product in the same run at the same precision. The textbook's is TF32 on a GPU, torch's default in convolutions.
4. Before anything is timed, the textbook and the preset with the same objective take an iteration from the same weights
   with the same draws, and their losses must agree.

Ray is not needed. `benchmark gpu` measures the same where torch is all there is.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from raygan.benchmarks.candidates import (
    PARTS,
    SOURCE,
    TEXTBOOK,
    Candidate,
    Part,
    Runner,
    check_losses,
    check_objective,
    count_operations,
    matrix_peak,
    rate,
)
from raygan.benchmarks.processes import start
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import TrainStepBenchmarkSettings
from raygan.errors import RayganError, first_line
from raygan.models.gan import NetworkSettings
from raygan.models.hardware import Precision, computes_bf16, keep_freed_memory, peak_resident_bytes
from raygan.settings import load_preset
from raygan.training.settings import StepOptions, TrainSettings


def benchmark(settings: TrainStepBenchmarkSettings) -> dict[str, Any]:
    """Measure, print a table, write JSON if asked, and return the numbers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = _candidates(settings, device)
    precisions = list(dict.fromkeys(candidate.precision for candidate in candidates))
    sources = [each for each in candidates if each.name == SOURCE]
    for each in sources[:1]:  # they differ in precision only
        check_objective(each, candidates[0])
    differences = {each.title: check_losses(each, candidates[0]) for each in sources}
    for title, difference in differences.items():
        print(f"{title}: the losses of an iteration are within {difference:.0e} of the textbook's")
    peaks = {precision: matrix_peak(device, precision, min(1.0, settings.seconds)) for precision in precisions}
    print("matrix peak: " + ", ".join(f"{name} {peak / 1e12:.2f} TFLOP/s" for name, peak in peaks.items()))
    rows = _measure(settings, candidates)
    for candidate in candidates:
        for part in PARTS:
            row = rows[candidate.title][part]
            row["flops_per_image"] = count_operations(candidate, part).flops
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
    found = [candidate_of(TEXTBOOK, SOURCE, plain, settings, device)]
    for preset in settings.presets:
        found += [candidate_of(preset, preset, precision, settings, device) for precision in precisions]
    return found


def candidate_of(
    name: str, preset: str, precision: Precision, settings: TrainStepBenchmarkSettings, device: torch.device
) -> Candidate:
    """A preset's step, at the benchmark's size of image, network and batch.

    Args:
        name: in the table.
        preset: of `raygan.training`.
        precision: of the convolutions.
        settings: of the benchmark.
        device: where it steps.
    """
    values = load_preset(TrainSettings, preset)
    values |= {"batch_size": settings.batch_size, "precision": precision}
    shape = {key: values[key] for key in ("z_dim", "critic_norm", "architecture") if key in values}
    networks = NetworkSettings(settings.image_size, width=settings.width, **shape)
    step = StepOptions(**{name: values[name] for name in StepOptions.model_fields if name in values})
    return Candidate(name, networks, step, precision, device.type)


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
    runner.warm_up()
    pipe.send(0.0)
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(rate(runner, seconds) if seconds else _peak_bytes(before) / 1e6)


def _peak_bytes(before: int) -> int:
    """Peak memory in bytes: the GPU's, or this process's growth since `before`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes() - before
