"""From a training's settings to its networks, its step and, under Ray Train, its place."""

from __future__ import annotations

import ray.train.torch
import torch

from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings
from raygan.models.hardware import keep_freed_memory
from raygan.runtime import capacity
from raygan.training.schedule import Schedule
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep


def network_settings(settings: TrainSettings, labels: tuple[str, ...]) -> NetworkSettings:
    """A training's networks; labels are the classes of a conditional generator, or empty."""
    return NetworkSettings(
        image_size=settings.image_size,
        z_dim=settings.z_dim,
        width=settings.width,
        critic_norm=settings.critic_norm,
        labels=labels,
        architecture=settings.architecture,
    )


def new_step(
    settings: TrainSettings,
    schedule: Schedule,
    labels: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    share: Share | None = None,
) -> GanStep:
    """A training's step before its first batch; labels as for `network_settings`."""
    total_kimg = schedule.total / 1000
    networks = network_settings(settings, labels)
    step = GanStep(networks, StepOptions.of(settings), device, share, total_kimg=total_kimg)
    step.record_steps()
    return step


def this_rank() -> tuple[Share, torch.device]:
    """This rank's share and device under Ray Train. Gives torch a thread for each reserved core."""
    capacity.use_own_cores()
    keep_freed_memory()
    context = ray.train.get_context()
    return Share(context.get_world_rank(), context.get_world_size()), ray.train.torch.get_device()
