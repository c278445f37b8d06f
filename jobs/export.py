#!/usr/bin/env python
"""Write a model as an ONNX file: `raygan export` from a checkout. `--help` lists the flags."""

from raygan.commands import run

if __name__ == "__main__":
    run("export")
