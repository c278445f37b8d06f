#!/usr/bin/env python
"""Run a job of this checkout on a cluster: `raygan submit` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("submit")
