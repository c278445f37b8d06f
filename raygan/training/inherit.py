"""Fine-tuning: a new training begins with the weights of another one's networks.

A generator folder gives the generator, both as it is trained and as its EMA. A training folder also gives the critic.
Optimizers start fresh. The networks must be alike, except that images may be twice as large: the networks then grow a
stage next to the image, with newly initialized weights (Karras et al. 2018, arXiv 1710.10196, without its fading).

The EMA continues from the inherited one. Its ramp counts that as one half-life of images, not as the whole training, so
that a short run can still learn another label. Where the networks grow, there is no useful average yet, and the EMA
starts fresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from raygan.errors import ConfigurationError, some
from raygan.models.gan import NetworkSettings, build_critic, build_generator, load_networks
from raygan.models.stages import shifted, stages_of, trained_parameters
from raygan.models.weights import load_tensors, under
from raygan.training.step import GanStep

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Inheritance:
    """The tensors that a new training takes over, by their names in its networks.

    Attributes:
        generator: as it was trained, or its EMA if there is nothing else.
        ema: the generator's EMA; empty where the networks grow.
        critic: empty if there is none.
        images: that the training of these weights has seen.
    """

    generator: Tensors
    ema: Tensors
    critic: Tensors
    images: float = 0.0

    @classmethod
    def of(cls, folder: Path, networks: NetworkSettings) -> Inheritance:
        """The tensors in a folder that fit these networks.

        Raises:
            ConfigurationError: its networks are too different. It names the flag that would help.
            RayganError: the folder is damaged.
        """
        source, description = load_networks(folder / "generator.json")
        weights = load_tensors(folder / "generator.safetensors")
        trained = _read_training(folder)
        _check_alike(source, networks, has_critic=bool(trained))
        with torch.device("meta"):  # only names and shapes count
            generator, critic = build_generator(networks).state_dict(), build_critic(networks).state_dict()
        grown = networks.image_size != source.image_size
        if grown:
            _check_growth(source, networks, weights, generator)
        before = under(trained, "critic")
        if grown:
            before = shifted(before, networks.architecture)
        return cls(
            generator=_fitting(under(trained, "generator") or weights, generator),
            ema={} if grown else _fitting(weights, generator),
            critic=_fitting(before, critic),
            images=description.get("about", {}).get("kimg", 0.0) * 1000,
        )

    def give(self, step: GanStep) -> None:
        """Put the tensors into a new step's networks."""
        step.generator.load_state_dict(self.generator, strict=False)
        step.critic.load_state_dict(self.critic, strict=False)
        # Without an inherited one, the EMA shows what the generator draws, and is its copy after the first update.
        step.ema.module.load_state_dict(self.ema or self.generator, strict=False)
        if self.ema:
            step.ema.go_on()
            step.ema_images = round(min(step.options.ema_kimg * 1000, step.options.ema_ramp * self.images))

    def check_frozen(self, networks: NetworkSettings, stages: int) -> None:
        """Raise ConfigurationError if the critic's first stages, which are to stay as they are, are not inherited."""
        if not stages:
            return
        if not self.critic:
            raise ConfigurationError(
                "--freeze-critic: a registered generator has no critic: give --begin-from a run or a checkpoint"
            )
        with torch.device("meta"):
            critic = build_critic(networks)
        trained = {id(each) for each in trained_parameters(critic, networks.architecture, stages)}
        frozen = (name for name, each in critic.named_parameters() if id(each) not in trained)
        anew = _layers(name for name in frozen if name not in self.critic)
        if anew:
            raise ConfigurationError(
                f"--freeze-critic: growing re-initializes the critic's {', '.join(anew)} next to the image, and "
                f"freezing would keep it random: drop the flag, or keep the image size"
            )

    def account(self, networks: NetworkSettings) -> str:
        """What is taken and what is re-initialized, in words."""
        with torch.device("meta"):
            both = {"generator": build_generator(networks), "critic": build_critic(networks)}
        taken: list[str] = []
        anew: list[str] = []
        for name, network in both.items():
            own = self.generator if name == "generator" else self.critic
            missing = _layers(key for key in network.state_dict() if key not in own)
            if not own:
                anew.append(f"the {name}")
                continue
            taken.append(f"the {name}" + (" and its EMA" if name == "generator" and self.ema else ""))
            anew += [f"the {name}'s {layer}" for layer in missing]
        begins = "the optimizers start fresh" + ("" if self.ema else ", and so does the EMA")
        return f"takes {' and '.join(taken)}; re-initializes {', '.join(anew) or 'nothing'}; {begins}"


def _check_alike(source: NetworkSettings, wanted: NetworkSettings, *, has_critic: bool) -> None:
    for field, flag in (("architecture", "--architecture"), ("z_dim", "--z-dim"), ("critic_norm", "--critic-norm")):
        old, new = getattr(source, field), getattr(wanted, field)
        if old != new and (field != "critic_norm" or has_critic):
            raise ConfigurationError(f"--begin-from: its networks have {field} {old}, not {new}: give {flag} {old}")
    if source.labels != wanted.labels:
        old, new = (some(one.labels) or "one label" for one in (source, wanted))
        way_out = f"train with --conditional on shards of {old} alone" if source.labels else "leave --conditional out"
        raise ConfigurationError(f"--begin-from: its networks draw {old}, not {new}: {way_out}")
    if wanted.image_size not in (source.image_size, 2 * source.image_size):
        raise ConfigurationError(
            f"--begin-from: its images are {source.image_size} px: --image-size can be {source.image_size} or "
            f"{2 * source.image_size}, not {wanted.image_size}"
        )
    if wanted.image_size == source.image_size and wanted.width != source.width:
        raise ConfigurationError(
            f"--begin-from: its networks have width {source.width}, not {wanted.width}: give --width {source.width}"
        )


def _check_growth(source: NetworkSettings, wanted: NetworkSettings, weights: Tensors, target: Tensors) -> None:
    stages_of(wanted.architecture, "--begin-from")
    if not _unfit(weights, target):
        return
    reason = f"--begin-from: growing doesn't reach {wanted.image_size} px from these networks"
    if source.width % 2 == 0:
        half = replace(wanted, width=source.width // 2)
        with torch.device("meta"):
            fits = not _unfit(weights, build_generator(half).state_dict())
        if fits:
            reason = f"--begin-from: a stage grows at half the width: give --width {half.width}, not {wanted.width}"
    raise ConfigurationError(reason)


def _unfit(weights: Tensors, target: Tensors) -> list[str]:
    """The tensors before the exit, which alone is replaced, that don't fit."""
    return [name for name in weights if not name.startswith("exit.") and name not in _fitting(weights, target)]


def _fitting(tensors: Tensors, target: Mapping[str, Tensor]) -> Tensors:
    """The tensors that the target has in the same shape."""
    return {name: value for name, value in tensors.items() if name in target and value.shape == target[name].shape}


def _read_training(folder: Path) -> Tensors:
    path = folder / "training.safetensors"
    return load_tensors(path) if path.exists() else {}


def _layers(names: Iterable[str]) -> list[str]:
    """Layers of tensors: ``blocks.4.0.weight`` belongs to ``blocks.4``."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:2]) if part[1:2] and part[1].isdigit() else part[0] for part in parts))
