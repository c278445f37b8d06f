"""Networks as ONNX files, for programs without torch.

    generator     latents, float32 (n, z_dim), and classes, int64 (n,), if conditional → images, float32 (n, 3, S, S)
    classifier    images, float32 (n, 3, S, S) → probabilities, float32 (n, labels)

Images are RGB in [-1, 1]: a level of 0 to 255 is round((value + 1) * 127.5). The number of rows n is free. Labels,
sizes and this scale are in the file's metadata.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raygan.errors import ConfigurationError
from raygan.models.gan import Generator
from raygan.models.googlenet import Classifier

#: Version of ONNX's operators; runtimes since 2023 know it.
OPSET = 20

_SCALE = "RGB in [-1, 1]; level of 0 to 255 = round((value + 1) * 127.5)"


def save_generator_onnx(generator: Generator, path: Path, labels: tuple[str, ...]) -> None:
    """Write a generator.

    Args:
        generator: on the CPU, in evaluation mode.
        path: of the file.
        labels: what it draws, by class.

    Raises:
        ConfigurationError: ONNX's packages are missing.
    """
    settings = generator.settings
    inputs = {"latents": torch.zeros(2, settings.z_dim)}
    if generator.labels:
        inputs["classes"] = torch.zeros(2, dtype=torch.int64)
    metadata = {"image_size": settings.image_size, "z_dim": settings.z_dim, "architecture": settings.architecture}
    _export(generator, inputs, "images", path, {"labels": list(labels), "images": _SCALE, **metadata})


def save_classifier_onnx(classifier: Classifier, path: Path) -> None:
    """Write a classifier.

    Args:
        classifier: on the CPU.
        path: of the file.

    Raises:
        ConfigurationError: ONNX's packages are missing.
    """
    size = classifier.image_size
    metadata = {"labels": list(classifier.labels), "images": _SCALE, "image_size": size}
    _export(_Probabilities(classifier.net), {"images": torch.zeros(2, 3, size, size)}, "probabilities", path, metadata)


class _Probabilities(nn.Module):
    """A network followed by a softmax."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores.softmax(1)


def _export(network: nn.Module, inputs: dict[str, Tensor], output: str, path: Path, metadata: dict[str, Any]) -> None:
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise ConfigurationError("ONNX files need more packages: pip install 'raygan[onnx]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own internals
        program = torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for mypy: it is None only for the old exporter
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    program.model.metadata_props.update(values)
    program.save(path, external_data=False)
