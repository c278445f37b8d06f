"""Measurements in processes of their own, so that their threads, imports and memory are their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from raygan.errors import RayganError, last_line


def in_process(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns in a fresh process. what: its name in errors.

    Raises RayganError in one line if the call fails there, or if the process is killed.
    """
    return in_processes(what, [(call, arguments)])[0]


def in_processes(what: str, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """What several calls return, each in a fresh process, all at once; otherwise as `in_process`."""
    context = multiprocessing.get_context("spawn")
    started = []
    for call, arguments in calls:
        ours, its = context.Pipe(duplex=False)
        # A daemon doesn't outlive this process, nor hold up its end.
        process = context.Process(target=_answer, args=(its, call, arguments), daemon=True)
        process.start()
        its.close()  # so that its end is seen here
        started.append((process, ours))
    return [_receive(what, process, pipe) for process, pipe in started]


def _receive(what: str, process: multiprocessing.process.BaseProcess, pipe: Connection) -> Any:
    try:
        answer, trouble = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}, likely for want of memory" if code < 0 else f"ended, {code}"
        raise RayganError(f"{what}: its process {how}") from None
    process.join()
    if trouble:
        raise RayganError(f"{what}: {trouble}")
    return answer


def _answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    try:
        pipe.send((call(*arguments), None))
    except Exception as error:  # a line is enough; its traceback would stand among the parent's progress
        pipe.send((None, last_line(error)))
