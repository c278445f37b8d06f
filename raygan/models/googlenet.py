"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842) as torchvision builds it, on images of 32 to 256 px, and its files.

A *classifier folder* is what the registry, the service and evaluation hold:

    classifier.json          format version, labels in output order, image size, and what the trainer says about it
    classifier.safetensors   weights and batch statistics, without the auxiliary heads, which only training needs

Pixels are scaled as (x - 127.5) / 127.5. The network behind torchvision's ImageNet weights was trained on this scale
too (`transform_input` merely undoes ImageNet's usual normalization), so one rule serves both.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygan.errors import RayganError
from raygan.models.weights import check_fits, fill, load_description, load_tensors, save_description, save_tensors

if TYPE_CHECKING:
    from torchvision.models import GoogLeNet

#: Format version of the JSON file.
VERSION = 1

#: Smallest and largest side in px: the network halves the image five times and needs one pixel to be left.
SMALLEST, LARGEST = 32, 256

#: Images that pass through the network at once, on a CPU and elsewhere.
_CPU_BATCH, _BATCH = 64, 256


def build_googlenet(labels: int, *, auxiliary: bool = True) -> GoogLeNet:
    """A network with random weights, for images with sides from 32 to 256 px.

    Args:
        labels: number of outputs.
        auxiliary: add the paper's two auxiliary heads. In training mode, the network then answers with a named tuple
            `GoogLeNetOutputs`. The heads pool to 4x4, which repeats values on images under 128 px; they still train.
    """
    from torchvision.models import GoogLeNet  # takes seconds to import, which a driver need not wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about its initialization, which is the one we want
        return GoogLeNet(num_classes=labels, aux_logits=auxiliary, transform_input=False, init_weights=True)


def to_input(images: Tensor, size: int) -> Tensor:
    """Images as the network takes them. Images of other sizes are resized with antialiasing.

    Args:
        images: uint8 (n, 3, S, S).
        size: side of the result in px.

    Returns:
        float32 (n, 3, size, size) in [-1, 1], channels last.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (n, 3, S, S), not {images.dtype} {tuple(images.shape)}")
    pixels = images.float()
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp_(0, 255)
    return pixels.sub_(127.5).div_(127.5).contiguous(memory_format=torch.channels_last)


class Classifier:
    """A trained GoogLeNet without its auxiliary heads, in evaluation mode.

    Attributes:
        net: module from `to_input`'s tensors to logits (n, labels).
        labels: names in output order.
        image_size: side in px that it was trained at.
        about: what its trainer says about it, JSON-ready.
    """

    def __init__(self, net: nn.Module, labels: tuple[str, ...], image_size: int, about: dict[str, Any]):
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.labels, self.image_size, self.about = labels, image_size, about

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Each label's probability: float32 (n, labels) for uint8 images (n, 3, S, S), on the images' device."""
        if not len(images):
            return torch.empty(0, len(self.labels))
        step = _CPU_BATCH if images.device.type == "cpu" else _BATCH
        parts = [self.net(to_input(part, self.image_size)).float().softmax(1) for part in images.split(step)]
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network to a device; returns itself."""
        self.net.to(device)
        return self


def save_classifier(
    folder: Path, net: GoogLeNet, *, labels: tuple[str, ...], image_size: int, about: dict[str, Any]
) -> None:
    """Write a classifier folder, which is made if missing.

    Args:
        folder: where to write.
        net: with or without auxiliary heads, on any device.
        labels: names in output order.
        image_size: side in px that it was trained at.
        about: JSON-ready values that `load_classifier` gives back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in net.state_dict().items() if not name.startswith("aux")}
    save_tensors(folder / "classifier.safetensors", weights)
    values = {"labels": list(labels), "image_size": image_size, "about": about}
    save_description(folder / "classifier.json", VERSION, values)


def load_classifier(folder: Path | str) -> Classifier:
    """A folder's classifier, on the CPU.

    Raises:
        RayganError: a file is missing or damaged, or has another version or architecture.
    """
    from torchvision.models import GoogLeNet  # see `build_googlenet`

    folder = Path(folder)
    path = folder / "classifier.json"
    description = load_description(path, VERSION)
    try:
        labels = tuple(str(label) for label in description["labels"])
        image_size = int(description["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RayganError(f"{path} does not describe a classifier: {type(error).__name__} {error}") from None
    if not labels or not SMALLEST <= image_size <= LARGEST:
        raise RayganError(f"{path} does not describe a classifier: {len(labels)} labels at {image_size} px")

    def build() -> GoogLeNet:
        return GoogLeNet(num_classes=len(labels), aux_logits=False, transform_input=False, init_weights=False)

    weights = folder / "classifier.safetensors"
    check_fits(build, weights)
    net = build()
    fill(net, load_tensors(weights), weights)
    return Classifier(net, labels, image_size, dict(description.get("about", {})))
