"""Steps run without waiting for the device, which no test machine needs to have.

On the CPU, modes fail on what reads a value on the host. On torch's device ``meta``, whose tensors have no
values, it also sees which copies go from one device to another.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep
from raygan.models.registry import ARCHITECTURES
from raygan.settings import preset_names
from raygan.training.registry import OBJECTIVES
from raygan.training.settings import TrainSettings
from raygan.training.step import GanStep
from tests.training.cases import Case, tiny_step

#: Operations whose result, or its shape, the host reads from the device.
READS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique_dim",
    "unique_consecutive",
    "_unique2",
    "bincount",
    "one_hot",
}


#: Functions that move single values between the host and the device, below what a dispatch mode sees.
MOVES = {"tensor", "new_tensor", "as_tensor", "cpu", "numpy", "tolist", "item"}


class WatchCalls(TorchFunctionMode):
    """Fails on a function that moves values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in MOVES, f"the host waits for {func}"
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Fails on an operation that waits, and counts values copied to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        assert name not in READS, f"the host waits for {func}"
        if name.startswith("index"):
            indices = [each for each in args[1] if each is not None] if isinstance(args[1], list | tuple) else []
            assert not any(each.dtype in (torch.bool, torch.uint8) for each in indices), f"the host counts for {func}"
        out = func(*args, **(kwargs or {}))
        before = {each.device for each in args if isinstance(each, torch.Tensor) and each.dim()}
        if isinstance(out, torch.Tensor) and before and out.device not in before:
            assert out.device.type == "meta", f"{func} copies to the host"
            self.copied.append(out.shape)
        return out


def cases() -> list[Case]:
    """Each preset, and each objective with each architecture, augmenting adaptively, on the settings of a preset."""
    presets = [(preset, "", "") for preset in preset_names(TrainSettings)]
    pairs = [(objective, architecture) for objective in OBJECTIVES.names() for architecture in ARCHITECTURES.names()]
    return [*presets, *(("best-64", *pair) for pair in pairs)]


def new_step(case: Case, device: str, precision: str, labels: tuple[str, ...]) -> GanStep:
    changes = {"precision": precision, "clip_gradient": 1.0, "augment_target": 0.6 if case[1] else 0.0}
    return tiny_step(case, device, labels=labels, **changes)


@pytest.fixture
def optimizers_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused optimizers refuse the device meta. The test on the CPU sees them step."""
    for name in ("Adam", "AdamW"):
        monkeypatch.setattr(torch.optim, name, functools.partial(idle, getattr(torch.optim, name)))


def idle(make: Any, *arguments: Any, fused: bool, **options: Any) -> Any:
    assert fused
    made = make(*arguments, **options)
    made.step = lambda: None
    return made


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms over all ranks believe that there are two, but no device answers."""
    answers = {"is_initialized": True, "get_world_size": 2, "all_gather": None, "all_reduce": None}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, answer=answer: answer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", cases(), ids=" ".join)
def test_a_step_reads_no_value(case, precision):
    step = new_step(case, "cpu", precision, ("cat", "dog") if case[1] else ())
    reals, classes = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    with WatchCalls(), Watch():
        for _ in range(2 * max(step.options.n_critic, step.options.penalty_every)):
            step.step(reals, classes)


def test_watching_finds_what_waits():
    values = torch.arange(4.0)
    for wait in (values[0].item, values.cpu, values.nonzero, lambda: values[values > 1], lambda: bool(values[1])):
        with WatchCalls(), Watch(), pytest.raises(AssertionError, match="the host"):
            wait()


@pytest.mark.usefixtures("optimizers_do_nothing", "two_ranks")
@pytest.mark.parametrize("case", cases(), ids=" ".join)
def test_a_step_copies_nothing_but_its_batch(case):
    step = new_step(case, "meta", "fp32", ("cat", "dog") if case[1] else ())
    reals, classes = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    with WatchCalls(), Watch() as watch:
        step.step(reals, classes)
    assert watch.copied == [reals.shape, classes.shape][: 2 if case[1] else 1]


def new_classifier(device: str, precision: str) -> ClassifierStep:
    options = ClassifierOptions(batch_size=4, precision=precision, label_smoothing=0.1)
    return ClassifierStep(2, options, 32, device, sync_batch_norm=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_classifiers_step_reads_no_value(precision):
    step = new_classifier("cpu", precision)
    images, targets = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    with WatchCalls(), Watch():
        for _ in range(5):  # the moving average moves in every fourth
            step.step(images, targets)


@pytest.mark.usefixtures("optimizers_do_nothing", "two_ranks")
def test_a_classifiers_step_copies_nothing_but_its_batch():
    step = new_classifier("meta", "fp32")
    images, targets = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    with WatchCalls(), Watch() as watch:
        step.step(images, targets)
    assert watch.copied == [images.shape, targets.shape]
