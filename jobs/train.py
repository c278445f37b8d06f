#!/usr/bin/env python
"""Train a face GAN and register the generator: `raygan train` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("train")
