"""Training checkpoints are data, never code: safetensors for tensors, JSON for everything else.

A *training folder* holds the EMA generator's folder (see `raygan.models.gan`) and whatever else a resumed run needs:

    generator.json          format version, network settings, and metrics of the moment
    generator.safetensors   weights and batch statistics of the EMA generator
    training.json           format version, network and step settings, images seen, those of an inherited EMA
    training.safetensors    both networks, the EMA, both optimizers and the adapting share of augmented images

The first rank writes it to a temporary folder, and Ray Train copies it to a new place in the storage (see
`raygan.training.worker`), so a checkpoint is never overwritten in place.

Random states are not stored: `GanStep` derives every draw from the seed and the images seen.
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
    NetworkSettings,
    build_critic,
    build_generator,
    load_networks,
    save_generator,
)
from raygan.models.weights import (
    fill,
    fill_optimizer,
    load_description,
    load_tensors,
    named,
    optimizer_tensors,
    save_description,
    save_tensors,
    under,
)
from raygan.training.step import GanStep

#: Names of a training folder's files.
_FILES = ("generator.json", "generator.safetensors", "training.json", "training.safetensors")

#: Name of the state of an adaptive augmentation.
_ADAPTIVE = "adaptive.state"


def save_training(folder: Path, step: GanStep, about: dict[str, Any]) -> None:
    """Write a training folder.

    Args:
        folder: where to write.
        step: what to save.
        about: JSON-ready values that `load_training` gives back.
    """
    save_generator(folder, cast(Generator, step.ema.module), about)
    tensors: dict[str, Tensor] = {}
    for part, module in _modules(step).items():
        tensors |= named(part, module.state_dict())
    for part, optimizer in _optimizers(step).items():
        tensors |= named(part, optimizer_tensors(optimizer))
    if step.adaptive:
        tensors[_ADAPTIVE] = step.adaptive.state
    save_tensors(folder / "training.safetensors", tensors)
    save_description(
        folder / "training.json",
        VERSION,
        {
            "networks": step.networks.to_dict(),
            "step": step.settings(),
            "images": step.images_seen,
            "ema_images": step.ema_images,
        },
    )


def load_training(folder: Path, step: GanStep) -> dict[str, Any]:
    """Bring a step to the state that was saved, and return the `about` that was saved with it.

    Raises:
        RayganError: the folder is damaged, or holds other networks than the step's, or moments of other parameters.
    """
    networks, description = load_networks(folder / "training.json")
    if networks != step.networks:
        raise RayganError(f"{folder} holds other networks ({networks}) than this run's ({step.networks})")
    frozen = description["step"].get("freeze_critic", 0)
    if frozen != step.options.freeze_critic:  # the optimizer numbers the parameters that it trains
        raise RayganError(
            f"--freeze-critic: the run was trained with {frozen}: resume it with that, or begin another one from it "
            f"with --begin-from"
        )
    path = folder / "training.safetensors"
    tensors = load_tensors(path)
    for part, module in _modules(step).items():
        fill(module, under(tensors, part), path)
    for part, optimizer in _optimizers(step).items():
        fill_optimizer(optimizer, under(tensors, part))
    if step.adaptive and _ADAPTIVE in tensors:
        step.adaptive.state.copy_(tensors[_ADAPTIVE])
    step.images_seen = _images_seen(description)
    step.ema_images = int(description.get("ema_images", 0))
    step.use_draws(description["step"].get("draws", "serial"))  # older checkpoints don't name the only kind there was
    return dict(load_description(folder / "generator.json", VERSION, kind="checkpoint").get("about", {}))


def is_whole(folder: Path) -> bool:
    """Whether a training folder has all of its files."""
    return all((folder / name).exists() for name in _FILES)


def checkpoint_bytes(networks: NetworkSettings) -> int:
    """About how many bytes a training folder takes: weights in fp32, and two moments of each in the optimizers."""
    with torch.device("meta"):
        sizes = [
            sum(parameter.numel() for parameter in net.parameters())
            for net in (build_generator(networks), build_critic(networks))
        ]
    generator, critic = sizes
    return 4 * ((3 + 2) * generator + 3 * critic)  # the moving average twice


def _images_seen(description: dict[str, Any]) -> int:
    """Images seen, by training.json; older files count batches."""
    if "images" in description:
        return int(description["images"])
    return int(description["batches"]) * int(description["step"]["batch_size"])


def _modules(step: GanStep) -> dict[str, nn.Module]:
    return {"generator": step.generator, "critic": step.critic, "ema": step.ema}


def _optimizers(step: GanStep) -> dict[str, torch.optim.Optimizer]:
    return {"generator_optimizer": step.generator_optimizer, "critic_optimizer": step.critic_optimizer}
