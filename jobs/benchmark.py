#!/usr/bin/env python
"""Measure raygan against its peers, side by side in one run.

  python jobs/benchmark.py prepare --input photos
  python jobs/benchmark.py prepare --input photos --memory 3000 30000
  python jobs/benchmark.py train-step
  python jobs/benchmark.py train --data shards --preset best-64 --label cat
  python jobs/benchmark.py quality --data shards --label cat --minutes 20 --picture kid.png
  python jobs/benchmark.py scale --data shards --preset best-64 --label cat --input photos
  python jobs/benchmark.py serve
  python jobs/benchmark.py serve-drill --seconds 120 --faults
  python jobs/benchmark.py tune --data shards --preset quick --label cat --trials 3 --trial-kimg 20

Each benchmark has its own flags: python jobs/benchmark.py NAME --help
"""

import sys
from pathlib import Path

from raygan.benchmarks.settings import (
    PrepareBenchmarkSettings,
    QualityBenchmarkSettings,
    ScaleBenchmarkSettings,
    ServeBenchmarkSettings,
    ServeDrillSettings,
    TrainBenchmarkSettings,
    TrainStepBenchmarkSettings,
    TuneBenchmarkSettings,
)
from raygan.cli import run_job

CHECKOUT = Path(__file__).resolve().parent.parent


def prepare(settings: PrepareBenchmarkSettings) -> None:
    from raygan.benchmarks.prepare import benchmark

    benchmark(settings)


def train_step(settings: TrainStepBenchmarkSettings) -> None:
    from raygan.benchmarks.train_step import benchmark

    benchmark(settings)


def train(settings: TrainBenchmarkSettings) -> None:
    from raygan.benchmarks.train import benchmark

    benchmark(settings)


def quality(settings: QualityBenchmarkSettings) -> None:
    from raygan.benchmarks.quality import benchmark

    benchmark(settings)


def scale(settings: ScaleBenchmarkSettings) -> None:
    from raygan.benchmarks.scale import benchmark

    benchmark(settings)


def serve(settings: ServeBenchmarkSettings) -> None:
    from raygan.benchmarks.serve import benchmark

    benchmark(settings, CHECKOUT)


def serve_drill(settings: ServeDrillSettings) -> None:
    from raygan.benchmarks.faults.load import drill

    drill(settings, CHECKOUT)


def tune(settings: TuneBenchmarkSettings) -> None:
    from raygan.benchmarks.tune import benchmark

    benchmark(settings)


BENCHMARKS = {
    "prepare": (PrepareBenchmarkSettings, prepare),
    "train-step": (TrainStepBenchmarkSettings, train_step),
    "train": (TrainBenchmarkSettings, train),
    "quality": (QualityBenchmarkSettings, quality),
    "scale": (ScaleBenchmarkSettings, scale),
    "serve": (ServeBenchmarkSettings, serve),
    "serve-drill": (ServeDrillSettings, serve_drill),
    "tune": (TuneBenchmarkSettings, tune),
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        print(__doc__)
        if name in ("-h", "--help"):
            sys.exit(0)
        print(f"error: {name!r} is no benchmark; choose one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)
    settings_class, run = BENCHMARKS[name]
    run_job(settings_class, run, doc=__doc__, argv=sys.argv[2:])
