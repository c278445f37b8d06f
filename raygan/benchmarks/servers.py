"""Servers in their own processes: started for a `with` block, and ended with everything they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from raygan.benchmarks.clients import HOST, Request, ask_once
from raygan.errors import RayganError


def free_port() -> int:
    """A port that nobody is listening on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, request: Request, timeout_s: float = 180.0
) -> Iterator[float]:
    """Run a server for the length of a `with` block, without the user's RAYGAN_TOKEN.

    Args:
        name: what errors call the server.
        port: where the server listens.
        request: the server is ready when it answers this with 200; the block gets the seconds until then.
        timeout_s: how long it may take.

    Raises:
        RayganError: the server ended before it was ready, or took too long.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a benchmark that is stopped stops its server too
    environment = {name: value for name, value in os.environ.items() if name != "RAYGAN_TOKEN"}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while ask_once(port, request).status != 200:
                if process.poll() is not None or time.perf_counter() - began > timeout_s:
                    output.seek(0)
                    last = output.read().decode("utf-8", "replace").strip().splitlines()[-3:]
                    raise RayganError(f"{name} did not start: {' / '.join(last)}")
                time.sleep(0.1)
            yield time.perf_counter() - began
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its descendants: some servers leave their workers behind."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
