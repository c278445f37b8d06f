#!/usr/bin/env python
"""Train and register the classifier: `raygan classify` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("classify")
