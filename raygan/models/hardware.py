"""What the machine can do, and how it is used: memory of this process, precisions, GPUs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

#: Of convolutions and products. "tf32" is float32 with a GPU's shorter mantissas.
Precision = Literal["fp32", "tf32", "bf16"]


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


def seconds_without_core() -> float:
    """How long this process's threads, together, have been ready to run while other work had the cores.

    0 where that is unknown (anywhere but on Linux). A thread that ends takes its seconds along.
    """
    waited = 0
    for statistics in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended since
            waited += int(statistics.read_bytes().split()[1])
    return waited / 1e9


def pick_precision(wanted: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The wanted precision, where "auto" is bf16 if the device computes it natively; only GPUs have TF32."""
    if wanted == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return "fp32" if wanted == "tf32" and device.type == "cpu" else wanted


def set_up_gpu(precision: str, *, deterministic: bool) -> None:
    """Have this process's GPU, if there is one, multiply in this precision.

    Args:
        precision: "tf32" multiplies float32 numbers with mantissas of 10 bits; all else leaves them alone. torch itself
            shortens them in convolutions unless told otherwise.
        deterministic: use only algorithms that give the same bits each time, and warn of operations that have none;
            otherwise the fastest, by trying them.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not deterministic, deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read before the first product
    if torch.cuda.is_available():  # on cores, all that we use is, and torch would clear memory that needn't be
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run natively. Emulated ones are tens of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Private to torch; `torch.backends.cpu.get_cpu_capability` is public but doesn't tell bfloat16 support.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """A block whose forward passes convolve and multiply in bfloat16 if the precision is "bf16"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, from this process's memory without waiting for the device."""
    if device.type == "cuda" and values.device.type == "cpu":
        # From memory that may be paged out, a copy waits until all earlier work is done.
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def on_device(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Batches on the device. A GPU copies each in a stream of its own, while it still works on those before."""
    if device.type != "cuda":
        yield from batches
        return
    copies, work = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = tuple(to_device(part, device) for part in batch)
        work.wait_stream(copies)
        for part in copied:
            part.record_stream(work)  # or its memory could be given to the next batch while it is in use
        yield copied
