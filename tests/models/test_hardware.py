"""Precisions are chosen, not met by chance, and batches come to the device in order."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raygan.models.hardware import on_device, pick_precision, seconds_without_core, set_up_gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _flags_of_before():
    with torch.backends.cudnn.flags(enabled=True):
        before = torch.backends.cuda.matmul.allow_tf32
        yield
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("capability", "wanted"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpus_precision_is_what_it_computes_natively(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", GPU) == wanted
    assert pick_precision("fp32", GPU) == "fp32"
    assert pick_precision("tf32", GPU) == "tf32"


def test_cores_have_no_tf32():
    assert pick_precision("tf32", CPU) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_are_shortened_only_if_asked(precision):
    set_up_gpu(precision, deterministic=False)
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert torch.backends.cudnn.benchmark


def test_deterministic_algorithms_are_not_tried_out():
    set_up_gpu("bf16", deterministic=True)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_a_gpu_takes_deterministic_algorithms_where_there_are_some(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    set_up_gpu("fp32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() == before  # on cores they only cost time
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        set_up_gpu("fp32", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        set_up_gpu("fp32", deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_cores_get_the_batches_themselves():
    batches = [(torch.tensor([number]), torch.tensor([-number])) for number in range(3)]
    assert list(on_device(iter(batches), CPU)) == batches


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_two_threads_on_one_core_wait_for_each_other():
    core, ready, done = min(os.sched_getaffinity(0)), threading.Barrier(2), threading.Barrier(3)

    def work():
        os.sched_setaffinity(0, {core})  # of this thread alone
        ready.wait()
        hashlib.sha256(bytes(100_000_000)).digest()
        took = time.thread_time()
        done.wait()
        done.wait()  # to be looked at alive
        return took

    before = seconds_without_core()
    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(work) for _ in range(2)]
        done.wait()
        waited = seconds_without_core() - before
        done.wait()
    # While one computes, the other waits.
    assert waited > 0.5 * min(thread.result() for thread in threads)
