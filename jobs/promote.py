#!/usr/bin/env python
"""Move a registered model's serving alias: `raygan promote` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("promote")
