"""The GAN architectures and feature networks that a setting can name.

Installed packages add their own under ``raygan.architectures`` and ``raygan.features``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from raygan.registry import Registry

if TYPE_CHECKING:  # needs torch, and names are listed without it
    from torch import nn


class Architecture(Protocol):
    """Builds a generator and its critic from `raygan.models.gan.NetworkSettings`.

    In training, a GPU replays recorded steps. So a forward pass must not depend on Python values that change.
    """

    #: Gives a `raygan.models.gan.Generator`.
    generator: Callable[..., nn.Module]

    #: Gives a module from images (N, 3, S, S) in [-1, 1] and classes (N,) or None to scores (N,), higher for reals.
    critic: Callable[..., nn.Module]

    #: Optional: the critic's `nn.Sequential` of stages, image first, and the layers of a stage. Both networks can then
    #: grow a stage for images twice as large, and critics can freeze stages. The generator names its stages from the
    #: latents on, and ends in ``exit``.
    # growth: tuple[str, int]


ARCHITECTURES: Registry[Architecture] = Registry(
    "raygan.architectures",
    {
        "dcgan": "raygan.models.dcgan:DCGAN",
        "skip": "raygan.models.skip:Skip",
        "residual": "raygan.models.residual:Residual",
    },
)

#: The network that decides by default: which photos are outliers, and which checkpoint is the best. Like
#: `SECOND_FEATURES`, it comes with the installation.
DEFAULT_FEATURES = "efficientnet_lite0"

#: The network that decides nothing by default and so judges what the other has chosen. It is of the same family and
#: was trained on the same images, so the two may share their errors.
SECOND_FEATURES = "efficientnet_lite2"

#: The network whose FID and KID carry no network in their names; ``inception_v3:FILE`` gives its weights.
INCEPTION = "inception_v3"

#: Functions without arguments that load a `raygan.models.features.Features`.
FEATURES: Registry[Callable[..., object]] = Registry(
    "raygan.features",
    {
        DEFAULT_FEATURES: "raygan.models.features:efficientnet_lite0",
        SECOND_FEATURES: "raygan.models.features:efficientnet_lite2",
        INCEPTION: "raygan.models.features:inception_v3",
    },
)

#: What the settings that name a feature network accept, for their help.
FEATURE_NETWORKS = (
    f"{', '.join(FEATURES.names())}, googlenet (the registered classifier), a classifier folder, "
    f"a .pth or .safetensors file of GoogLeNet weights, or NAME:FILE with an architecture of timm, such as "
    f"vit_large_patch14_dinov2:FILE"
)
