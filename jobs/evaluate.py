#!/usr/bin/env python
"""Write a report card of generators: `raygan evaluate` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("evaluate")
