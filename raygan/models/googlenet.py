"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842) as torchvision builds it, on images of 32 to 256 px.

A *classifier folder* is what the registry, the service and evaluation know:

    classifier.json          format version, labels in the order of the outputs, image size, and what the trainer
                             says about it
    classifier.safetensors   weights and batch statistics, without the auxiliary heads, which only training needs

Pixels become (x - 127.5) / 127.5. That is also what the network behind torchvision's ImageNet weights was trained
on (`transform_input` merely undoes ImageNet's usual normalisation), so one rule serves both.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import GoogLeNet

from raygan.errors import RayganError
from raygan.models.weights import fill, load_description, load_tensors, save_description, save_tensors
from raygan.runtime.storage import local_folder

VERSION = 1

#: Sides in px that the network works at: five halvings leave one place at least.
SMALLEST, LARGEST = 32, 256

#: Images that go through the network at a time, on a CPU and elsewhere.
_CPU_BATCH, _BATCH = 64, 256


def build_googlenet(labels: int, *, auxiliary: bool = True) -> GoogLeNet:
    """An untrained network with `labels` outputs, for images of any side from 32 to 256 px.

    auxiliary: with the paper's two auxiliary heads, which a network in training mode answers with too (a
        `GoogLeNetOutputs` named tuple). They pool to 4 by 4, which on images under 128 px repeats values of
        smaller maps; they train all the same.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its initialisation, which is what we want
        return GoogLeNet(num_classes=labels, aux_logits=auxiliary, transform_input=False, init_weights=True)


def to_input(images: Tensor, size: int) -> Tensor:
    """uint8 images (n, 3, S, S) as the network takes them: float32 (n, 3, size, size) in [-1, 1], channels last.

    Other sizes are resized with antialiasing.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (n, 3, S, S), not {images.dtype} {tuple(images.shape)}")
    pixels = images.float()
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp_(0, 255)
    return pixels.sub_(127.5).div_(127.5).contiguous(memory_format=torch.channels_last)


class Classifier:
    """A trained GoogLeNet without its auxiliary heads, in evaluation mode.

    net: from `to_input`'s tensors to logits (n, labels). labels: in the order of the outputs. image_size: the side
    in px that it was trained at. about: what its trainer says of it, JSON-ready.
    """

    def __init__(self, net: nn.Module, labels: tuple[str, ...], image_size: int, about: dict[str, Any]):
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.labels, self.image_size, self.about = labels, image_size, about

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """float32 (n, labels), rows summing to 1, of uint8 images (n, 3, S, S), on the images' device."""
        if not len(images):
            return torch.empty(0, len(self.labels))
        step = _CPU_BATCH if images.device.type == "cpu" else _BATCH
        parts = [self.net(to_input(part, self.image_size)).float().softmax(1) for part in images.split(step)]
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> Classifier:
        """The same classifier, moved to a device."""
        self.net.to(device)
        return self


def save_classifier(
    folder: Path, net: GoogLeNet, *, labels: tuple[str, ...], image_size: int, about: dict[str, Any]
) -> None:
    """Write a classifier folder (made if missing); `about` is JSON-ready and given back on loading."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in net.state_dict().items() if not name.startswith("aux")}
    save_tensors(folder / "classifier.safetensors", weights)
    values = {"labels": list(labels), "image_size": image_size, "about": about}
    save_description(folder / "classifier.json", VERSION, values)


def load_classifier(folder: Path | str) -> Classifier:
    """The classifier of a folder, on the CPU; a remote folder is brought to this machine's disk.

    Raises RayganError if a file is missing, truncated, or of another version or architecture.
    """
    folder = Path(local_folder(str(folder)))
    path = folder / "classifier.json"
    description = load_description(path, VERSION)
    try:
        labels = tuple(str(label) for label in description["labels"])
        image_size = int(description["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RayganError(f"{path} describes no classifier: {type(error).__name__} {error}") from None
    if not labels or not SMALLEST <= image_size <= LARGEST:
        raise RayganError(f"{path} describes no classifier: {len(labels)} labels at {image_size} px")
    net = GoogLeNet(num_classes=len(labels), aux_logits=False, transform_input=False, init_weights=False)
    fill(net, load_tensors(folder / "classifier.safetensors"), folder / "classifier.safetensors")
    return Classifier(net, labels, image_size, dict(description.get("about", {})))
