"""Objectives by name, to which installed packages add under ``raygan.objectives``, and augmentation policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from raygan.registry import Registry

if TYPE_CHECKING:
    from raygan.training.objectives import Objective

#: Subclasses of `raygan.training.objectives.Objective`.
OBJECTIVES: Registry[type[Objective]] = Registry(
    "raygan.objectives",
    {
        "wgan-gp": "raygan.training.objectives:WassersteinGP",
        "dcgan": "raygan.training.objectives:SigmoidBCE",
        "r3gan": "raygan.training.objectives:RelativisticR1R2",
    },
)

#: DiffAugment's changes.
Policy = Literal["color", "translation", "cutout"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
