"""Replayed steps are the same steps.

A tape stands in for a CUDA graph on machines without a GPU: it keeps the operations that torch dispatched, and repeats
them with the same tensors and the same numbers. A value that the host computes anew in each step would stay as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raygan.models.registry import ARCHITECTURES
from raygan.settings import preset_names
from raygan.training.recording import Recorder
from raygan.training.registry import OBJECTIVES
from raygan.training.settings import TrainSettings
from raygan.training.step import GanStep
from tests.training.cases import Case, tiny_step

STEPS = 24


class Tape(TorchDispatchMode):
    """Keeps what is dispatched, and repeats it into the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.calls:
            given = {each.untyped_storage().data_ptr() for each in tensors((args, kwargs))}
            news = tensors(func(*args, **kwargs))
            for old, new in zip(tensors(out), news, strict=True):
                if old.untyped_storage().data_ptr() not in given:  # else it was written in place, or is a view
                    old.copy_(new)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


def on_tape(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    tape = Tape()
    with tape:
        result = work()
    fresh = True  # unlike a CUDA graph, a tape has done what it recorded

    def replay() -> torch.Tensor:
        nonlocal fresh
        if not fresh:
            with torch.no_grad():
                tape.play()
        fresh = False
        return result

    return replay


def cases() -> list[Case]:
    """Each preset, and each objective and architecture, augmenting adaptively."""
    own = [("best-64", objective, "") for objective in OBJECTIVES.names()]
    own += [("best-64", "", architecture) for architecture in ARCHITECTURES.names()]
    return [*((preset, "", "") for preset in preset_names(TrainSettings)), *own]


def new_step(case: Case, device: str = "cpu", **changes: Any) -> GanStep:
    changes |= {"precision": "fp32", "n_critic": 2, "warmup_kimg": 0.04, "decay": 0.5, "clip_gradient": 1.0}
    changes |= {"rate_changes": ["0.05:0.001:0.002"]}
    if case[1]:
        changes |= {"augment": ["color", "translation", "cutout"], "augment_target": 0.6}
    labels = ("cat", "dog") if case[1] else ()
    return tiny_step(case, device, labels=labels, total_kimg=4 * STEPS / 1000, **changes)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=random),
            torch.randint(2, (4,), generator=random),
        )
        for _ in range(count)
    ]


def state(step: GanStep) -> dict[str, torch.Tensor]:
    networks = {"generator": step.generator, "critic": step.critic, "ema": step.ema}
    found = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    return found | ({"adaptive": step.adaptive.state} if step.adaptive else {})


@pytest.mark.parametrize("case", cases(), ids=" ".join)
def test_replayed_steps_are_those_of_a_host_that_works_itself(case):
    plain, replayed = new_step(case), new_step(case)
    replayed.record_steps(on_tape)
    for reals, classes in batches(STEPS):
        wanted, found = plain.step(reals, classes), replayed.step(reals, classes)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}, rel=1e-4, abs=1e-4
        )
    for (name, wanted), found in zip(state(plain).items(), state(replayed).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_each_kind_and_shape_has_its_recording_and_results_are_kept():
    recorded = []

    def record(work):
        recorded.append(work)
        return on_tape(work)

    recorder = Recorder(record)

    def run(kind, values):
        return recorder.run(kind, lambda inputs: {"sum": kind * inputs["values"].sum()}, {"values": values})["sum"]

    found = [run(kind, torch.full((size,), float(n))) for n in range(5) for kind in (1, 2) for size in (3, 4)]
    assert [float(each) for each in found] == [kind * size * n for n in range(5) for kind in (1, 2) for size in (3, 4)]
    assert len(recorded) == 4


def test_steps_stay_as_they_are_without_a_gpu():
    plain, asked = new_step(("best-64", "", "")), new_step(("best-64", "", ""))
    asked.record_steps()
    for reals, classes in batches(6):
        plain.step(reals, classes)
        asked.step(reals, classes)
    assert all(torch.equal(a, b) for a, b in zip(state(plain).values(), state(asked).values(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", cases(), ids=" ".join)
def test_a_gpu_replays_what_it_computes(case):
    plain, replayed = (new_step(case, "cuda", deterministic=True) for _ in range(2))
    replayed.record_steps()
    for reals, classes in batches(STEPS):
        plain.step(reals, classes)
        replayed.step(reals, classes)
    for (name, wanted), found in zip(state(plain).items(), state(replayed).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
