"""A training on a GPU that can be stopped at any batch, of a preset or the textbook. Needs torch alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch

from raygan.benchmarks.candidates import TEXTBOOK, Candidate
from raygan.benchmarks.textbook import TextbookStep
from raygan.training.step import GanStep


class Training:
    """A training that can be stopped: the textbook's, or a preset's.

    Attributes:
        seconds: of training so far.
        batches: so far.
        kept: seconds and images of each generator in a file.
    """

    def __init__(self, candidate: Candidate, path: Path):
        """Start, or continue from the file."""
        self.candidate, self.path = candidate, path
        self.textbook = candidate.name == TEXTBOOK
        make: Any = TextbookStep if self.textbook else GanStep
        self._step: Any = make(candidate.networks, candidate.settings, candidate.device)
        self.seconds, self.batches, self.kept = 0.0, 0, cast(list[dict[str, float]], [])
        if path.exists():
            state = torch.load(path, map_location=candidate.device, weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.seconds, self.batches, self.kept = state["seconds"], state["batches"], state["kept"]
            if not self.textbook:
                self._step.images_seen = self.batches * candidate.settings.batch_size
        if not self.textbook:
            self._step.record_steps()

    def step(self, reals: torch.Tensor) -> None:
        """Train on a batch."""
        self.batches += 1
        if not self.textbook:
            self._step.step(reals)
            return
        self._step.critic_step(reals)
        if self.batches % self.candidate.settings.n_critic == 0:
            self._step.generator_step()

    def keep(self) -> None:
        """Write the generator that users would get."""
        generator = self._step.generator if self.textbook else self._step.ema.module
        self.kept.append({"seconds": self.seconds, "images": self.batches * self.candidate.settings.batch_size})
        weights = {name: value.cpu().contiguous() for name, value in generator.state_dict().items()}
        torch.save(weights, self.path.with_name(f"{self.candidate.name}-{len(self.kept)}.pt"))

    def save(self) -> None:
        """Write all that a later command needs to continue from here."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        progress = {"seconds": self.seconds, "batches": self.batches, "kept": self.kept}
        scratch = self.path.with_suffix(".part")
        torch.save({**state, **progress}, scratch)
        os.replace(scratch, self.path)

    def _parts(self) -> dict[str, Any]:
        step = self._step
        parts = {"generator": step.generator, "critic": step.critic}
        parts |= {"generator_optimizer": step.generator_optimizer, "critic_optimizer": step.critic_optimizer}
        return parts if self.textbook else {**parts, "ema": step.ema}
