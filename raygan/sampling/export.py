"""Export: a registered model or a folder in, a file for programs without torch out."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.models.export import save_classifier_onnx, save_generator_onnx
from raygan.models.googlenet import load_classifier
from raygan.runtime import storage
from raygan.sampling.generators import find_generators, is_folder
from raygan.sampling.settings import ExportSettings
from raygan.tracking.networks import find_classifier


@dataclass(frozen=True)
class ExportResult:
    """What was written: `model` as the file `output`."""

    model: str
    output: str

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps({"model": self.model, "output": self.output})


def export(settings: ExportSettings) -> ExportResult:
    """Write the file.

    Raises:
        ConfigurationError: the model is unknown, or packages are missing.
        RayganError: files can't be read or written.
    """
    registered = None
    if not (is_folder(settings.model) or is_folder(settings.model, "classifier")):
        client = tracking.connect(settings)
        registered = tracking.find_model(client, settings.model)
        if registered is None:
            raise ConfigurationError(
                f"--model: {settings.model!r} is neither a model's folder nor a registered model "
                f"(NAME for the version under {tracking.SERVING_ALIAS!r}, or NAME/VERSION)"
            )
    if settings.log and registered is None:
        raise ConfigurationError("--log: only a registered model has a place in MLflow: leave --log out")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, storage.name(settings.output) or "model.onnx")  # "/" has no name, and can't be written
        name = _write(settings, registered, file)
        storage.write_bytes(settings.output, file.read_bytes())
        if registered and settings.log:
            tracking.keep_beside(client, registered, file, "onnx")
    return ExportResult(name, settings.output)


def _write(settings: ExportSettings, registered: tracking.RegisteredModel | None, file: Path) -> str:
    """Write the model's file; returns the model's name."""
    is_classifier = (
        registered.name == tracking.CLASSIFIER_NAME if registered else is_folder(settings.model, "classifier")
    )
    name = f"{registered.name}/{registered.version}" if registered else settings.model
    if is_classifier:
        save_classifier_onnx(load_classifier(storage.local_folder(find_classifier(settings, name))), file)
    else:
        (found,) = find_generators(settings, [name], [])
        save_generator_onnx(found.generator, file, found.labels)
    return name
