"""A model folder as an MLflow model, which others can load with `mlflow.pyfunc`.

    MLmodel, requirements.txt, …    what MLflow knows: signature, input example, pinned requirements
    artifacts/                      the model folder itself, JSON and safetensors: all that raygan reads
    code/raygan/models/ …           the networks' code for those who don't have raygan
    README.md, samples.png          the model card

Nothing is pickled. MLflow runs the code in `raygan.tracking.outside`, and only in other people's processes.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import raygan
from raygan import pictures
from raygan.models.drawing import Drawing
from raygan.models.gan import Generator, load_generator
from raygan.models.googlenet import load_classifier
from raygan.models.registry import ARCHITECTURES

Kind = Literal["generator", "classifier"]

#: What each kind needs beside the code that travels along.
_PACKAGES = {
    "generator": ("mlflow", "torch", "numpy", "pandas", "safetensors"),
    "classifier": ("mlflow", "torch", "torchvision", "numpy", "pandas", "safetensors", "pillow"),
}

#: The parts of raygan that travel along: the networks, and what they import.
_TRAVELS = ("__init__.py", "errors.py", "registry.py", "models")

#: Samples on the model card, and in a row of it.
_SHOWN, _COLUMNS = 16, 8


def write_model(folder: Path, kind: Kind, model: Any, to: Path, card: str) -> None:
    """Write an MLflow model.

    Args:
        folder: a generator or classifier folder.
        kind: which of the two.
        model: MLflow's description of the model, which is filled in.
        to: where to write; must not exist.
        card: the model card, Markdown.
    """
    import mlflow.pyfunc

    # It reports each step and shows a bar for each file.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    parts = _of_generator(folder) if kind == "generator" else _of_classifier(folder)
    with tempfile.TemporaryDirectory() as scratch:
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=str(Path(__file__).parent / "outside" / f"{kind}.py"),
            artifacts={"weights": str(folder / f"{kind}.safetensors"), "description": str(folder / f"{kind}.json")},
            code_paths=[str(_travelers(Path(scratch, "raygan")))],
            mlflow_model=model,
            metadata={"raygan": raygan.__version__},
            **parts,
        )
    (to / "README.md").write_text(card, encoding="utf-8")
    if kind == "generator":
        (to / "samples.png").write_bytes(_samples(load_generator(folder)[0]))


def _of_generator(folder: Path) -> dict[str, Any]:
    """Signature, example and requirements of a generator."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    generator, _ = load_generator(folder)
    size, labels = generator.settings.image_size, generator.labels
    example = pd.DataFrame({"seed": [1, 2], **({"label": [labels[0], labels[-1]]} if labels else {})})
    return {
        "signature": ModelSignature(
            inputs=Schema([ColSpec("long", "seed"), ColSpec("string", "label", required=bool(labels))]),
            outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]),
            params=ParamSchema([ParamSpec("truncation", "double", 1.0)]),
        ),
        "input_example": example,
        "pip_requirements": [*_pinned("generator"), *ARCHITECTURES.requirement(generator.settings.architecture)],
    }


def _of_classifier(folder: Path) -> dict[str, Any]:
    """Signature, example and requirements of a classifier."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    classifier = load_classifier(folder)
    gray = torch.full((1, 3, classifier.image_size, classifier.image_size), 127, dtype=torch.uint8)
    return {
        "signature": ModelSignature(
            inputs=Schema([ColSpec(AnyType(), "image")]),
            outputs=Schema([ColSpec("float", label) for label in classifier.labels]),
        ),
        "input_example": pd.DataFrame({"image": [base64.b64encode(pictures.png(pictures.grid(gray, 1))).decode()]}),
        "pip_requirements": _pinned("classifier"),
    }


def _pinned(kind: Kind) -> list[str]:
    """The versions installed here, without local parts such as +cpu, which no registry has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES[kind]]


def _travelers(folder: Path) -> Path:
    """A copy of what travels along; returns the folder."""
    source = Path(raygan.__file__).parent
    folder.mkdir()
    for name in _TRAVELS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / name, folder / name)
    return folder


def _samples(generator: Generator) -> bytes:
    """A picture of the first seeds' samples, of each label in turn."""
    drawing = Drawing(generator)
    images = drawing(*drawing.example(_SHOWN)).permute(0, 3, 1, 2)
    return pictures.png(pictures.grid(images, _COLUMNS))
