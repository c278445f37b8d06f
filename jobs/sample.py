#!/usr/bin/env python
"""Draw many samples from a generator: `raygan sample` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("sample")
