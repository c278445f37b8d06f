#!/usr/bin/env python
"""Prepare, train and serve in one command: `raygan quickstart` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("quickstart")
