"""Where an iteration's time goes on a GPU. Needs torch alone."""

from __future__ import annotations

import re
from typing import Any

import torch

from raygan.benchmarks.candidates import Candidate, Runner, now, rate
from raygan.errors import RayganError

#: Kernels listed, and iterations profiled.
_KERNELS, _ITERATIONS = 12, 8


def timeline(candidate: Candidate, seconds: float) -> dict[str, Any]:
    """The kernels of an iteration, measured for `seconds`: how busy they keep the device, and which take longest."""
    runner = Runner(candidate, "iteration")
    runner.warm_up()
    now(candidate.device)
    kind = torch.profiler.ProfilerActivity
    kinds = [kind.CPU, kind.CUDA] if candidate.device == "cuda" else [kind.CPU]
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        for _ in range(_ITERATIONS):
            runner.run()
        now(candidate.device)
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events() or []
        # Annotations, such as an optimizer's step, span the kernels we want.
        if event.device_type.name == candidate.device.upper() and not event.is_user_annotation
    )
    if not spans:
        raise RayganError("the profiler saw no kernels")
    busy, gaps, end = 0.0, [], spans[0][0]
    took: dict[str, list[float]] = {}
    for start, stop, name in spans:
        gaps += [start - end] if start > end else []
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
        took.setdefault(short(name), []).append(stop - start)
    whole = end - spans[0][0]
    longest = sorted(took.items(), key=lambda item: -sum(item[1]))[:_KERNELS]
    total = sum(map(sum, took.values()))
    # The profiler slows the host, so gaps are measured with it, and the busy share without.
    undisturbed = runner.images / rate(runner, seconds)
    return {
        "candidate": candidate.title,
        "batch": candidate.settings.batch_size,
        "milliseconds": 1e3 * undisturbed,
        "busy": min(1.0, busy / _ITERATIONS / 1e6 / undisturbed),
        "launches": len(spans) / _ITERATIONS,
        "gaps": {"share": 1 - busy / whole, "longest_microseconds": max(gaps, default=0.0)},
        "kernels": [
            {"name": name, "share": sum(times) / total, "calls": len(times) / _ITERATIONS} for name, times in longest
        ],
    }


def short(name: str) -> str:
    """A kernel's name without namespace, template arguments and parameters, plus the operation of torch's generic ones.

    Examples: ``RowwiseMomentsCUDAKernel``, ``elementwise_kernel direct_copy_kernel_cuda``.
    """
    plain = re.sub(r"\(anonymous namespace\)::|\w+::", "", name.removeprefix("void "))
    head, *rest = re.split(r"[<(]", plain, maxsplit=1)
    does = re.search(r"\b(?!Binary|.Unary)(\w+(_kernel_cuda|[Ff]unctor\w*)|cutlass_\w+)", rest[0]) if rest else None
    return (f"{head} {does[0]}" if does else head)[:60]
