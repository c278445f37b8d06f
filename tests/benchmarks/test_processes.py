"""Calls in processes of their own: their answers, and one line for whatever goes wrong there."""

import os
import signal

import pytest

from raygan.benchmarks.processes import in_process, in_processes
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


def test_a_killed_process_is_said():
    with pytest.raises(RayganError, match="the work: its process was killed by SIGKILL"):
        in_process("the work", end_by_signal)
