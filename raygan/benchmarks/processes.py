"""Processes of measurements: work run in fresh ones, and what processes take; Ray's are found by title.

A measurement in a fresh process has threads, imports and memory of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from raygan.errors import RayganError, last_line


def find_processes(title: str, below: int | None = None) -> list[psutil.Process]:
    """Descendants of a process whose title matches from its beginning.

    Args:
        title: regular expression, such as ``ray::RayTrainWorker``.
        below: process id; this process if None.
    """
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(below).children(recursive=True):
            with suppress(psutil.Error):  # it may end while we look
                if re.match(title, " ".join(process.cmdline())):
                    found.append(process)
    return found


def own_megabytes(process: psutil.Process) -> float:
    """A process's resident megabytes without what it shares, such as the object store; 0 if it has ended."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return float(memory.rss - memory.shared) / 1e6


def cpu_seconds() -> float:
    """CPU time of this process and its descendants, including those that have ended."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):  # it may end while we look
            total += sum(process.cpu_times()[:4])  # user and system, own and of children that have ended
    return total


def output_of(what: str, command: Sequence[str]) -> str:
    """What a command prints. Raises RayganError with `what` and the last line of its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RayganError(f"{what}: {lines[-1]}")
    return done.stdout


def in_process(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `call` returns in a fresh process.

    Args:
        what: its name in errors.
        call: a function of a module, with picklable arguments and result.

    Raises:
        RayganError: in one line, that the call failed or its process was killed.
    """
    return in_processes(what, [(call, arguments)])[0]


def in_processes(what: str, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Return what several calls return, each in a fresh process, all at the same time; else like `in_process`."""
    started = [start(_answer, call, arguments) for call, arguments in calls]
    return [_receive(what, process, pipe) for process, pipe in started]


def start(serve: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a fresh process that runs `serve(pipe, *arguments)`, and return it with the other end of the pipe.

    An error in it is sent through the pipe as a RayganError and ends the process.
    """
    # Forked from a server that has imported the functions' modules and computed nothing: like new, but torch, which
    # takes seconds, is imported only once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([each.__module__ for each in (serve, *arguments) if callable(each)])
    ours, its = context.Pipe()
    # This process doesn't wait for daemons when it ends.
    process = context.Process(target=_guarded, args=(its, serve, arguments), daemon=True)
    process.start()
    its.close()  # or the end of the process would go unnoticed
    return process, ours


def _receive(what: str, process: BaseProcess, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = (
            f"was killed by {signal.Signals(-code).name}, probably for lack of memory" if code < 0 else f"ended, {code}"
        )
        raise RayganError(f"{what}: its process {how}") from None
    process.join()
    if isinstance(answer, RayganError):
        raise RayganError(f"{what}: {last_line(answer)}")
    return answer


def _answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(call(*arguments))


def _end_with_parent() -> None:
    """End this process when its parent ends: a killed parent ends no children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _guarded(pipe: Connection, serve: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(pipe, *arguments)
    except Exception as error:  # its message is enough; a traceback would land in the parent's progress bar
        pipe.send(RayganError(str(error).strip() or type(error).__name__))
