"""What every benchmark needs: the checkout it runs from, the machine its numbers belong to, a file for them."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import raygan
from raygan.errors import ConfigurationError
from raygan.machine import cores


def checkout() -> Path:
    """The checkout's folder, which holds jobs/ and serve_config.yaml.

    Raises:
        ConfigurationError: raygan is installed without a checkout, and the current folder isn't one.
    """
    for folder in (Path(raygan.__file__).parent.parent, Path.cwd()):
        if (folder / "serve_config.yaml").exists() and (folder / "jobs").is_dir():
            return folder
    raise ConfigurationError("this command needs a checkout of raygan: run it from there")


def machine() -> dict[str, Any]:
    """Cores, GPU and versions that the numbers belong to."""
    return {
        "cores": cores(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Write the numbers, if a path is given; null for NaN, which JSON lacks."""
    if path:
        from raygan.cli import strict_json  # not above: a machine that is lent for its GPU may have torch alone

        Path(path).write_text(strict_json(json.dumps(result), indent=2) + "\n", encoding="utf-8")
