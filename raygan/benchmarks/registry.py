"""The benchmarks by name: `jobs/benchmark.py NAME` and `raygan benchmark NAME` run one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from raygan.cli import Job, guarded_output
from raygan.settings import closest

_SETTINGS = "raygan.benchmarks.settings:"
_RUN = "raygan.benchmarks."

BENCHMARKS = {
    "prepare": Job(
        summary="Compare prepare's speed with a Pillow loop and torchvision's loader, or measure its memory.",
        settings=_SETTINGS + "PrepareBenchmarkSettings",
        function=_RUN + "prepare:benchmark",
        examples=(
            "--input photos",
            "--input photos --memory 3000 30000",
            "--input photos --no-outlier --megapixels 12",
            "--compare 300000 3000000",
        ),
    ),
    "train-step": Job(
        summary="Compare a training step with textbook WGAN-GP's: images/s, memory, share of the hardware's peak.",
        settings=_SETTINGS + "TrainStepBenchmarkSettings",
        function=_RUN + "train_step:benchmark",
        examples=("",),
    ),
    "gpu": Job(
        summary="Measure a GPU: steps next to textbook WGAN-GP's, where their time goes, and KID against time.",
        settings=_SETTINGS + "GpuBenchmarkSettings",
        function=_RUN + "gpu_report:benchmark",
        examples=("--data shards --label cat --folder gpu-64", "--folder gpu-64"),
        notes="The first command writes photos and a plan. On a machine with a GPU, "
        "`python -m raygan.benchmarks.gpu gpu-64` in a checkout measures with torch alone. The second command writes "
        "tables of the results.",
    ),
    "train": Job(
        summary="Compare a training under Ray Train with the bare loop on photos in memory.",
        settings=_SETTINGS + "TrainBenchmarkSettings",
        function=_RUN + "train:benchmark",
        examples=("--data shards --preset best-64 --label cat",),
    ),
    "quality": Job(
        summary="Compare presets with textbook WGAN-GP: KID against time.",
        settings=_SETTINGS + "QualityBenchmarkSettings",
        function=_RUN + "quality:benchmark",
        examples=("--data shards --label cat --minutes 20 --picture kid.png",),
    ),
    "scale": Job(
        summary="Measure strong and weak scaling over workers, and model it beyond this machine.",
        settings=_SETTINGS + "ScaleBenchmarkSettings",
        function=_RUN + "scale:benchmark",
        examples=(
            "--data shards --preset best-64 --label cat --input photos",
            "--data shards-128px --photos 10000 1000000 30000000",
        ),
    ),
    "serve": Job(
        summary="Compare the service with plain FastAPI and LitServe, all with the same models.",
        settings=_SETTINGS + "ServeBenchmarkSettings",
        function=_RUN + "serve:benchmark",
        examples=("",),
        notes="LitServe comes with raygan's extra `benchmark`.",
    ),
    "serve-drill": Job(
        summary="Check every image that concurrent clients get, while replicas die or hostile input arrives.",
        settings=_SETTINGS + "ServeDrillSettings",
        function=_RUN + "faults.load:drill",
        examples=("--seconds 120 --faults", "--seconds 600 --hostile"),
        notes="The last line of standard output is one JSON object.",
    ),
    "tune": Job(
        summary="Compare a search with the same trainings run one after another.",
        settings=_SETTINGS + "TuneBenchmarkSettings",
        function=_RUN + "tune:benchmark",
        examples=("--data shards --preset quick --label cat --trials 3 --trial-kimg 20",),
    ),
}


def run_benchmark(program: str, argv: Sequence[str]) -> NoReturn:
    """Run the benchmark that a command line names, and exit as jobs do.

    Args:
        program: what users type before the name, such as ``python jobs/benchmark.py``.
        argv: the benchmark's name and its flags.
    """
    name, *flags = argv or [""]
    if name in BENCHMARKS:
        BENCHMARKS[name].run(f"{program} {name}", flags)
    with guarded_output():
        print(f"Measure raygan beside its peers, both in the same run.\n\n{_examples(program)}\n\n"
              f"Each benchmark has its own flags: {program} NAME --help\n")  # fmt: skip
    if name in ("-h", "--help"):
        sys.exit(0)
    problem = f"{name!r} is not a benchmark{closest(name, list(BENCHMARKS))}" if name else "name a benchmark"
    print(f"error: {problem}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
    sys.exit(2)


def _examples(program: str) -> str:
    return "\n".join(
        f"  {program} {name} {example}".rstrip() for name, job in BENCHMARKS.items() for example in job.examples
    )
