#!/usr/bin/env python
"""Serve the promoted generators over HTTP: `raygan serve` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("serve")
