"""Measurements in processes of their own, so that their threads, imports and memory are their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from raygan.errors import RayganError, last_line


def in_process(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns in a fresh process. what: its name in errors.

    Raises RayganError in one line if the call fails there, or if the process is killed.
    """
    return in_processes(what, [(call, arguments)])[0]


def in_processes(what: str, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """What several calls return, each in a fresh process, all at once; otherwise as `in_process`."""
    started = [start(_answer, call, arguments) for call, arguments in calls]
    return [_receive(what, process, pipe) for process, pipe in started]


def start(serve: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A fresh process that runs `serve(pipe, *arguments)`, and the other end of the pipe.

    What goes wrong there is sent as a RayganError, and ends the process.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    # This process's end waits for no daemon.
    process = context.Process(target=_guarded, args=(its, serve, arguments), daemon=True)
    process.start()
    its.close()  # so that its end is seen here
    return process, ours


def _receive(what: str, process: BaseProcess, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}, likely for want of memory" if code < 0 else f"ended, {code}"
        raise RayganError(f"{what}: its process {how}") from None
    process.join()
    if isinstance(answer, RayganError):
        raise RayganError(f"{what}: {last_line(answer)}")
    return answer


def _answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(call(*arguments))


def _end_with_parent() -> None:
    """Wait for the end of whoever started this process, and end it: a parent that is killed ends no children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _guarded(pipe: Connection, serve: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(pipe, *arguments)
    except Exception as error:  # its words are enough; its traceback would stand among the parent's progress
        pipe.send(RayganError(str(error).strip() or type(error).__name__))
