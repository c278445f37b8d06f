"""Calls in fresh processes: their answers, one line for each failure, and processes found by title."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

from raygan.benchmarks.processes import find_processes, in_process, in_processes
from raygan.errors import RayganError


def end_by_signal():
    os.kill(os.getpid(), signal.SIGKILL)


def test_answers_come_from_other_processes_in_order():
    first, second = in_processes("pids", [(os.getpid, ()), (os.getpid, ())])
    assert len({first, second, os.getpid()}) == 3
    assert in_process("a sum", sum, [1, 2]) == 3


def test_an_error_is_one_line():
    with pytest.raises(RayganError, match=r"the list: .*No such file or directory: '/nowhere'"):
        in_process("the list", os.listdir, "/nowhere")


def test_a_killed_process_is_reported():
    with pytest.raises(RayganError, match="the work: its process was killed by SIGKILL"):
        in_process("the work", end_by_signal)


def test_a_process_does_not_outlive_its_parent():
    work = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"from raygan.benchmarks.processes import in_process; in_process('work', exec, {work!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        parent.terminate()
        parent.communicate()  # returns when both have closed their output
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_descendants_are_found_by_title():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # a worker"])
    title = f"{sys.executable} -c import time.*worker"
    try:
        assert [found.pid for found in find_processes(title)] == [process.pid]
        assert find_processes("import time") == []  # titles are matched from their beginning
        assert find_processes(title, below=process.pid) == []
    finally:
        process.kill()
        process.wait()
    assert find_processes(title, below=process.pid) == []
