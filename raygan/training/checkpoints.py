"""Checkpoints are data, never code: safetensors for tensors, JSON for everything else.

A *generator folder* is what the registry and the service know:

    generator.json          format version, network settings, and what the caller says about it
    generator.safetensors   weights and batch statistics of the EMA generator

A *training folder* holds a generator folder's files and what a resumed run needs besides:

    training.json           format version, network and step settings, batches seen
    training.safetensors    both networks, the EMA and both optimisers

Random states are not stored: `GanStep` derives every draw from the seed and the batch number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raygan.errors import RayganError
from raygan.models.gan import (
    VERSION,
    Generator,
    _load_json,
    _load_tensors,
    _network_settings,
    save_generator,
)
from raygan.models.weights import fill, save_description, save_tensors
from raygan.training.step import GanStep


def save_training(folder: Path, step: GanStep, about: dict[str, Any]) -> None:
    """Write a training folder from which `load_training` makes an equal `GanStep`."""
    save_generator(folder, cast(Generator, step.ema.module), about)
    tensors: dict[str, Tensor] = {}
    for part, module in _modules(step).items():
        tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    for part, optimizer in _optimizers(step).items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{number}.{name}": value for name, value in state.items()}
    save_tensors(folder / "training.safetensors", tensors)
    save_description(
        folder / "training.json",
        VERSION,
        {"networks": step.networks.to_dict(), "step": step.settings.to_dict(), "batches": step.batches},
    )


def load_training(folder: Path, step: GanStep) -> dict[str, Any]:
    """Bring `step` to the state that `save_training` wrote; what was said about it.

    Raises RayganError if the folder is damaged or was written for other networks.
    """
    description = _load_json(folder / "training.json")
    if _network_settings(folder / "training.json", description) != step.networks:
        raise RayganError(f"{folder} holds other networks ({description['networks']}) than asked for ({step.networks})")
    path = folder / "training.safetensors"
    tensors = _load_tensors(path)
    for part, module in _modules(step).items():
        fill(module, _under(tensors, part), path)
    for part, optimizer in _optimizers(step).items():
        _fill_optimizer(optimizer, _under(tensors, part))
    step.batches = int(description["batches"])
    return dict(_load_json(folder / "generator.json").get("about", {}))


def _modules(step: GanStep) -> dict[str, nn.Module]:
    return {"generator": step.generator, "critic": step.critic, "ema": step.ema}


def _optimizers(step: GanStep) -> dict[str, torch.optim.Optimizer]:
    return {"generator_optimizer": step.generator_optimizer, "critic_optimizer": step.critic_optimizer}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        states.setdefault(int(number), {})[key] = value
    # The hyperparameters are those of the settings in force, not of the checkpoint.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = part + "."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
