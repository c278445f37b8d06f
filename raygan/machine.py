"""What this machine is, and what it offers a process: cores, memory, a temporary folder, and a cache folder."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: those it may run on, or fewer if its container has a quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: str = "/") -> float | None:
    """Cores of the control group that this process is in (Linux, versions 1 and 2); None without a limit.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    groups = Path(root, "sys/fs/cgroup")
    found = []
    for folder in _group_folders(Path(root, "proc/self/cgroup")):
        found.append(_quota(groups / folder / "cpu.max"))
        found.append(
            _quota(groups / "cpu" / folder / "cpu.cfs_quota_us", groups / "cpu" / folder / "cpu.cfs_period_us")
        )
    limits = [limit for limit in found if limit is not None]
    return min(limits) if limits else None


def free_memory(root: str = "/") -> int:
    """Bytes of memory that this process may still take: the machine's, or less in a container with a limit.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    import psutil  # not needed to start a job

    groups = Path(root, "sys/fs/cgroup")
    free = [int(psutil.virtual_memory().available)]
    for folder in _group_folders(Path(root, "proc/self/cgroup")):
        free += _left(groups / folder, "memory.max", "memory.current", "inactive_file")
        free += _left(
            groups / "memory" / folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        )
    return max(0, min(free))


def release_memory() -> None:
    """Return what this process has freed to the system; glibc would keep most of it for the process."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _left(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes left below a control group's limit, counting cached files as free; empty if there is no limit."""
    try:
        used = int((folder / usage).read_text(encoding="ascii"))
        rows = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = next((int(value) for name, value in rows if name == cache), 0)
        return [int((folder / limit).read_text(encoding="ascii")) - used + cached]
    except (OSError, ValueError):  # no such file; or "max", the word for no limit
        return []


def _group_folders(file: Path) -> list[str]:
    """The process's groups and their parents, of which each may have a limit."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [""]
    paths = {line.split(":", 2)[2].strip("/") for line in lines if line.count(":") >= 2}
    return sorted({"", *(str(folder) for path in paths for folder in (Path(path), *Path(path).parents))})


def _quota(*files: Path) -> float | None:
    """Quota over period, in files of one or two numbers; None if there is no limit."""
    try:
        quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file; or "max", the word for no limit
        return None


def limit_threads() -> None:
    """Keep numeric libraries from starting more threads than a container's quota allows; call it before importing them.

    They count the cores of the machine. 64 threads on two cores are slower than two.
    """
    quota = cpu_quota()
    if quota is not None and quota < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))  # torch, NumPy's OpenBLAS and Arrow follow it


def boot_id() -> str:
    """The machine's id until it starts again, the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not on Linux
        return socket.gethostname()


def cache_folder() -> Path:
    """A folder for files that can be made again: in the home, or among temporary files if the home is read-only."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raygan"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # read-only, or no home at all
        pass
    return Path(tempfile.gettempdir()) / f"raygan-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def place_caches() -> None:
    """If the home is read-only, give Matplotlib a folder for its files, too; else it prints paragraphs about it."""
    folder = cache_folder()
    if folder.parent == Path(tempfile.gettempdir()):
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
