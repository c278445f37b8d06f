#!/usr/bin/env python
"""Search settings of a training: `raygan tune` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("tune")
