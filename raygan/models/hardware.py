"""A process's memory: tuned for a loop that frees and takes the same large blocks at every step, and measured."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Literal

import torch


def keep_freed_memory() -> None:
    """Let glibc reuse what a step has freed, instead of giving it back and faulting in fresh pages at the next.

    A step at 64 px and batch 32 took 9,000 page faults, a seventh of a core's time.
    """
    if sys.platform != "linux":
        return
    change = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if change is not None:
        change(-3, 32 << 20)  # M_MMAP_THRESHOLD: its greatest value
        change(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peak_resident_bytes() -> int:
    """The most memory that this process has held at once; 0 where that isn't known (only Linux says)."""
    if sys.platform != "linux":
        return 0
    # Not getrusage: what it says begins with the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision wanted; "auto" is bf16 where the device computes it natively."""
    if wanted == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return wanted


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run natively; emulated ones are tens of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
