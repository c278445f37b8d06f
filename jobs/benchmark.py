#!/usr/bin/env python
"""Measure raygan beside its peers: `raygan benchmark NAME` from a checkout. `--help` lists the names."""

import sys

from raygan.benchmarks.registry import run_benchmark

if __name__ == "__main__":
    run_benchmark("python jobs/benchmark.py", sys.argv[1:])
