"""What the machine can do: memory of this process, and bfloat16."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it and faulting in new pages.

    A training step at 64 px with batches of 32 took 9,000 page faults, a seventh of a core's time.
    """
    if sys.platform != "linux":
        return
    change = getattr(ctypes.CDLL(None), "mallopt", None)  # missing in other C libraries
    if change is not None:
        change(-3, 32 << 20)  # M_MMAP_THRESHOLD: its maximum
        change(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peak_resident_bytes() -> int:
    """The most memory that this process has held; 0 where that is unknown (anywhere but on Linux)."""
    if sys.platform != "linux":
        return 0
    # Not getrusage, which starts from the peak of the parent process.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """The wanted precision, where "auto" is bf16 if the device computes it natively."""
    if wanted == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return wanted


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run natively. Emulated ones are tens of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Private to torch; `torch.backends.cpu.get_cpu_capability` is public but doesn't tell bfloat16 support.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, from this process's memory without waiting for the device."""
    if device.type == "cuda" and values.device.type == "cpu":
        # From memory that may be paged out, a copy waits until all earlier work is done.
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
