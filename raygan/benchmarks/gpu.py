"""Training speed on a GPU, measured on a machine that may have torch and nothing else:

    python -m raygan.benchmarks.gpu FOLDER

`benchmark gpu --data SHARDS --folder FOLDER` writes FOLDER: photos, and a plan of settings that needs only torch to
read. The command measures what is still missing, writes `results.json` and generators into FOLDER, and ends after
`--seconds`. The same command resumes it, even in the middle of a training. `benchmark gpu --folder FOLDER` then makes
tables of the results where all of raygan is installed.

1. Speeds of the hardware: the fastest product at each precision, and a copy in memory.
2. Whether the losses of the textbook's settings agree with the textbook's; then images/s and memory of each candidate's
   iteration, in turn with the textbook's, and what a roofline allows.
3. The timeline of an iteration: the kernels that take longest, and how much of the time the GPU has one to run.
4. Trainings for equal times, which keep a generator at each point in time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from raygan.benchmarks.candidates import (
    SOURCE,
    Candidate,
    Runner,
    count_operations,
    losses_apart,
    matrix_peak,
    now,
    rate,
)
from raygan.benchmarks.gpu_timeline import timeline
from raygan.benchmarks.gpu_training import Training
from raygan.benchmarks.results import machine
from raygan.models.gan import NetworkSettings
from raygan.models.hardware import set_up_gpu

PLAN, PHOTOS, RESULTS = "plan.json", "photos.npy", "results.json"

#: Batches between two looks at the clock in a training, for which the host waits for the GPU.
_LOOK = 20


class Options(SimpleNamespace):
    """A step's options by name: what is read of `StepOptions`, which needs pydantic."""

    def plain(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dict(vars(self))

    def model_copy(self, *, update: dict[str, Any]) -> Options:
        """With other values."""
        return Options(**{**vars(self), **update})


class OutOfTime(Exception):  # noqa: N818
    """The command's time is up; what is unfinished has been kept."""


class Session:
    """One command's measurements.

    Attributes:
        plan: what to measure.
        results: by part, of all commands so far.
    """

    def __init__(self, folder: Path, seconds: float, device: str):
        self.folder, self.device, self.deadline = folder, device, time.perf_counter() + seconds
        self.plan: dict[str, Any] = json.loads((folder / PLAN).read_text())
        kept = folder / RESULTS
        self.results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def parts(self) -> dict[str, Callable[[], Any]]:
        """What the plan asks for, in order."""
        plan, shown = self.plan, self.candidate(self.plan["timeline"])
        return {
            "machine": machine,
            "speeds": self.speeds,
            "losses": self.losses,
            **{f"steps {batch}": partial(self.steps, batch) for batch in plan["batches"]},
            "timeline": partial(timeline, shown, plan["seconds"]),
            **{f"training {each['name']}": partial(self.train, self.candidate(each)) for each in plan["trainings"]},
        }

    def run(self) -> bool:
        """Measure until everything is, or the time is up; returns whether everything is."""
        for name, measure in self.parts().items():
            if name in self.results:
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                self.check_time()
                self.results[name] = measure()
            except OutOfTime:
                return False
            except Exception as error:  # the GPU's time is short: the other parts are measured all the same
                print(f"{name} failed: {error!r}", file=sys.stderr, flush=True)
            self._write()
        return all(name in self.results for name in self.parts())

    def check_time(self) -> None:
        """Raise OutOfTime when the command's time is up."""
        if time.perf_counter() > self.deadline:
            raise OutOfTime

    def candidate(self, values: dict[str, Any]) -> Candidate:
        """A candidate of the plan."""
        networks = NetworkSettings(**values["networks"])
        options = cast(Any, Options(**values["options"]))
        recorded = values.get("recorded", True)
        return Candidate(values["name"], networks, options, values["precision"], self.device, recorded)

    def speeds(self) -> dict[str, float]:
        """FLOP/s of the fastest product at each precision, and bytes/s of a copy, read and written."""
        seconds = self.plan["seconds"]
        device = torch.device(self.device)
        precisions = dict.fromkeys(values["precision"] for values in self.plan["candidates"])
        found = {precision: matrix_peak(device, precision, seconds) for precision in precisions}
        values = torch.zeros(2**28 if self.device == "cuda" else 2**22, device=device)
        found["bandwidth"] = _per_second(lambda: values.clone(), 2 * values.nbytes, self.device)
        return found

    def losses(self) -> dict[str, float]:
        """How far the losses of the textbook's settings are from the textbook's, from the same weights and draws."""
        first, *others = map(self.candidate, self.plan["candidates"])
        return {each.title: losses_apart(each, first) for each in others if each.name == SOURCE}

    def steps(self, batch: int) -> dict[str, dict[str, float]]:
        """Each candidate's iteration at a batch size: medians over rounds in which all take turns."""
        candidates, runners, memory = [], [], []
        for values in self.plan["candidates"]:
            self.check_time()
            candidate = self.candidate({**values, "options": {**values["options"], "batch_size": batch}})
            before = _allocated(self.device, reset=True)
            runner = Runner(candidate, "iteration")
            set_up_gpu(candidate.precision, deterministic=False)  # the textbook sets up nothing itself
            runner.warm_up()
            candidates.append(candidate)
            runners.append(runner)
            memory.append((_allocated(self.device) - before) / 1e6)
        rates: list[list[float]] = [[] for _ in runners]
        for _ in range(self.plan["rounds"]):
            for own, runner in zip(rates, runners, strict=True):
                self.check_time()
                own.append(rate(runner, self.plan["seconds"]))
        rows = {}
        for candidate, own, megabytes in zip(candidates, rates, memory, strict=True):
            counted = count_operations(candidate, "iteration")
            speeds = self.results["speeds"]
            peak, speed = speeds[candidate.precision], statistics.median(own)
            at_best = counted.images_per_second(peak, speeds["bandwidth"])
            rows[candidate.title] = {
                "images_per_second": speed,
                "ratio": statistics.median(a / b for a, b in zip(own, rates[0], strict=True)),
                "megabytes": megabytes,
                "share_of_peak": counted.flops * speed / peak,
                "share_of_peak_at_best": counted.flops * at_best / peak,
            }
            print(f"{candidate.title:20} batch {batch:4} {speed:9.1f} images/s", file=sys.stderr, flush=True)
        return rows

    def train(self, candidate: Candidate) -> list[dict[str, float]]:
        """Train for the planned minutes on photos in the GPU's memory; seconds and images of each generator kept."""
        photos = torch.from_numpy(np.load(self.folder / PHOTOS)).to(self.device)
        training = Training(candidate, self.folder / f"{candidate.name}.state")
        set_up_gpu(candidate.precision, deterministic=False)  # the textbook sets up nothing itself
        seconds, points = 60 * self.plan["minutes"], self.plan["points"]
        began = time.perf_counter() - training.seconds
        while len(training.kept) < points:
            if training.batches % _LOOK == 0:
                training.seconds = now(self.device) - began
                if training.seconds >= seconds * (len(training.kept) + 1) / points:
                    training.keep()
                if time.perf_counter() > self.deadline:
                    training.save()
                    raise OutOfTime
            rows = torch.randint(len(photos), (candidate.settings.batch_size,), device=self.device)
            training.step(photos[rows])
        training.save()
        return training.kept

    def _write(self) -> None:
        scratch = self.folder / f"{RESULTS}.part"
        scratch.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(scratch, self.folder / RESULTS)


def finish(folder: Path, seconds: float, device: str) -> None:
    """Measure everything that can be measured; what is unfinished is saved every `seconds`."""
    while True:
        session = Session(folder, seconds, device)
        if session.run() or time.perf_counter() < session.deadline:  # all is done, or the rest fails
            return


def _allocated(device: str, *, reset: bool = False) -> int:
    """The most bytes that tensors on the GPU have taken since the last reset, or take now."""
    if device != "cuda":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def _per_second(work: Callable[[], Any], amount: float, device: str) -> float:
    best = 0.0
    for _ in range(20):
        start = now(device)
        work()
        best = max(best, amount / max(1e-9, now(device) - start))
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m raygan.benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="what `benchmark gpu --data SHARDS --folder FOLDER` has written")
    parser.add_argument("--seconds", type=float, default=500.0, help="end after about this many seconds [default 500]")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to measure [default cuda]")
    flags = parser.parse_args()
    if not (flags.folder / PLAN).exists():
        parser.error(
            f"{flags.folder} has no {PLAN}: write it with `benchmark gpu --data SHARDS --folder {flags.folder}`"
        )
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: --device cpu only tries the command out")
    session = Session(flags.folder, flags.seconds, flags.device)
    done = session.run()
    left = [name for name in session.parts() if name not in session.results]
    print("everything is measured" if done else f"to do: {', '.join(left)}; the same command continues")


if __name__ == "__main__":
    main()
