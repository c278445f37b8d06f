"""Steps recorded once and replayed, so that a GPU doesn't wait for its host.

A GPU finishes most kernels of a small network before the host has queued the next. A CUDA graph queues all kernels of
a step with one call. It repeats them with the same addresses and the same numbers: whatever changes from step to step
must be a tensor, which is copied to where the recording reads it. Whatever the host decides makes a different *kind* of
step, recorded on its own.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import torch
from torch import Tensor

from raygan.training.objectives import Terms

#: Runs of a kind before it is recorded: libraries choose their kernels, and optimizers make their state.
RUNS_BEFORE = 2

#: From tensors by name to sums by name.
Work = Callable[[Mapping[str, Tensor]], Terms]

#: Records a function, and returns one that replays it.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


class Recorder:
    """Runs steps, and from their third run on replays them."""

    def __init__(self, record: Record):
        """Start without recordings; `record` is a `CudaGraphs`, or a test's."""
        self._record = record
        self._runs: Counter[Hashable] = Counter()
        self._inputs: dict[Hashable, Tensor] = {}
        self._replays: dict[Hashable, Callable[[], Terms]] = {}

    def run(self, kind: Hashable, work: Work, inputs: Mapping[str, Tensor]) -> Terms:
        """What `work` gives for the inputs.

        Args:
            kind: everything that the host decides in `work`.
            work: works on the device alone, and returns scalars.
            inputs: tensors by name.
        """
        places = {name: (name, value.shape, value.dtype) for name, value in inputs.items()}
        kind = kind, *places.values()
        self._runs[kind] += 1
        if self._runs[kind] <= RUNS_BEFORE:
            return work(inputs)
        for name, place in places.items():
            if place not in self._inputs:
                self._inputs[place] = torch.empty_like(inputs[name])
            self._inputs[place].copy_(inputs[name])
        if kind not in self._replays:
            held = {name: self._inputs[place] for name, place in places.items()}
            self._replays[kind] = self._recording(partial(work, held))
        return self._replays[kind]()

    def _recording(self, work: Callable[[], Terms]) -> Callable[[], Terms]:
        names: list[str] = []

        def stacked() -> Tensor:
            terms = work()
            names[:] = terms
            return torch.stack([value.float() for value in terms.values()])

        replay = self._record(stacked)
        # The next replay overwrites what this one gives.
        return lambda: dict(zip(names, replay().clone().unbind(), strict=True))


class CudaGraphs:
    """Records CUDA graphs, which share a memory pool for intermediates."""

    def __init__(self, device: torch.device, *optimizers: torch.optim.Optimizer):
        """Prepare to record.

        Args:
            device: a GPU.
            optimizers: those that step in what is recorded.
        """
        self._stream = torch.cuda.Stream(device)
        self._optimizers = optimizers
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that replays `work`; `work` itself, with a warning, where it can't be recorded."""
        graph = torch.cuda.CUDAGraph()
        # Loading a state replaces an optimizer's groups, so they are looked up only now.
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for group in groups:
            group["capturable"] = True  # torch asks for it where an optimizer is recorded, and warns elsewhere
        try:
            # Other threads of this process may go on using the GPU.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            warnings.warn(f"the steps are not recorded as CUDA graphs, which is slower: {error}", stacklevel=2)
            return work
        finally:
            for group in groups:
                group["capturable"] = False

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
