#!/usr/bin/env python
"""Break things while raygan works: `raygan drill` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("drill")
