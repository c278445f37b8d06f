"""Steps of tiny networks, by a preset, and another objective or architecture where a case names one."""

from __future__ import annotations

from typing import Any

from raygan.models.gan import NetworkSettings
from raygan.settings import load_preset
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep

#: A preset, and an objective and an architecture, or "" for the preset's.
Case = tuple[str, str, str]


def tiny_step(
    case: Case, device: str = "cpu", *, labels: tuple[str, ...] = (), total_kimg: float = 1.0, **changes: Any
) -> GanStep:
    """A step on batches of 4 images of 32 px; changes: of its options."""
    preset, objective, architecture = case
    values = load_preset(TrainSettings, preset) | {"batch_size": 4}
    values |= ({"objective": objective} if objective else {}) | changes
    options = StepOptions(**{name: values[name] for name in StepOptions.model_fields if name in values})
    networks = NetworkSettings(
        32, 8, 4, values["critic_norm"], labels, architecture or values.get("architecture", "dcgan")
    )
    return GanStep(networks, options, device, total_kimg=total_kimg)
