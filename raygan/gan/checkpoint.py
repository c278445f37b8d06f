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

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raygan.errors import RayganError
from raygan.gan.networks import Generator, NetworkSettings
from raygan.gan.step import GanStep

VERSION = 1


def save_generator(folder: Path, generator: Generator, about: dict[str, Any]) -> None:
    """Write `generator` into `folder` (made if missing); `about` is JSON-ready and given back on loading."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors(folder / "generator.safetensors", generator.state_dict())
    _save_json(folder / "generator.json", {"networks": generator.settings.to_dict(), "about": about})


def load_generator(folder: Path) -> tuple[Generator, dict[str, Any]]:
    """The generator of a folder, on the CPU and in evaluation mode, and what was said about it.

    Raises RayganError if a file is missing, truncated, or of another version or architecture.
    """
    description = _load_json(folder / "generator.json")
    generator = Generator(_network_settings(folder / "generator.json", description))
    _fill(generator, _load_tensors(folder / "generator.safetensors"), folder / "generator.safetensors")
    return generator.eval(), dict(description.get("about", {}))


def save_training(folder: Path, step: GanStep, about: dict[str, Any]) -> None:
    """Write a training folder from which `load_training` makes an equal `GanStep`."""
    save_generator(folder, cast(Generator, step.ema.module), about)
    tensors: dict[str, Tensor] = {}
    for part, module in _modules(step).items():
        tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    for part, optimizer in _optimizers(step).items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{number}.{name}": value for name, value in state.items()}
    _save_tensors(folder / "training.safetensors", tensors)
    _save_json(
        folder / "training.json",
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
        _fill(module, _under(tensors, part), path)
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


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError:
        raise RayganError(f"{path} does not fit the architecture that its JSON file describes") from None


def _under(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = part + "."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _network_settings(path: Path, description: dict[str, Any]) -> NetworkSettings:
    try:
        return NetworkSettings(**description["networks"])
    except (KeyError, TypeError, ValueError) as error:
        raise RayganError(f"{path} describes no network that this version knows: {error}") from None


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise RayganError(f"{path} is missing: the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise RayganError(f"{path} is damaged or truncated: {error}") from None


def _save_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps({"version": VERSION, **values}, indent=2) + "\n", encoding="utf-8")


def _load_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RayganError(f"{path} is missing: this is no checkpoint folder") from None
    except (ValueError, OSError):
        raise RayganError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(values, dict) or values.get("version") != VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise RayganError(f"{path} has format version {found}; this raygan reads version {VERSION}")
    return values
