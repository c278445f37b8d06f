"""ImageNet weights to start a classifier from: a local file, or torchvision's download."""

from __future__ import annotations

import http.client

import torch
from torch import Tensor

from raygan.errors import RayganError, first_line
from raygan.models.googlenet import build_googlenet
from raygan.models.weights import read_tensors


def load_imagenet_weights(path: str | None, *, auxiliary: bool) -> dict[str, Tensor]:
    """ImageNet weights by name, without the last layers.

    Args:
        path: a .pth or .safetensors file; None downloads torchvision's weights.
        auxiliary: whether the classifier has auxiliary heads.

    Raises:
        RayganError: the weights can't be read or downloaded, or aren't GoogLeNet's.
    """
    weights = _read(path) if path else _download()
    with torch.device("meta"):  # only names and shapes are needed
        own = build_googlenet(2, auxiliary=auxiliary).state_dict()
    wanted = {name for name in own if not name.startswith("fc.") and ".fc2." not in name}
    found = {name: value for name, value in weights.items() if name in wanted}
    needed = {name for name in wanted if not name.startswith("aux")}
    wrong = [name for name in found if found[name].shape != own[name].shape]
    if not needed <= set(found) or wrong:
        raise RayganError(f"--weights: {path or 'the download'} does not hold GoogLeNet's weights")
    broken = [name for name, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise RayganError(f"--weights: {path or 'the download'} has NaN or infinite weights, in {broken[0]}")
    return found


def _read(path: str) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except Exception as error:  # readers of weight files raise many kinds
        reason = first_line(error)
        raise RayganError(f"--weights: {path} does not hold GoogLeNet's weights: {reason}") from None


def _download() -> dict[str, Tensor]:
    from torchvision.models import GoogLeNet_Weights

    try:
        return dict(GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
    # No network, no space left, a download cut short or with the wrong checksum.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise RayganError(
            f"--weights: ImageNet weights can't be downloaded ({reason}): give the path of a file that holds them, "
            f"or leave --weights out to train from scratch"
        ) from None
