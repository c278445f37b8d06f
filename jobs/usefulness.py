#!/usr/bin/env python
"""Find out when generated images help a classifier: `raygan usefulness` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("usefulness")
