#!/usr/bin/env python
"""Write photos as training shards: `raygan prepare` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("prepare")
