"""Settings of `jobs/sample.py` and `jobs/export.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, NameOrAddress, option


class SampleSettings(StorageSettings):
    """All settings of `jobs/sample.py`."""

    group: ClassVar[str] = "samples"
    resumes: ClassVar[bool] = True

    output: Address = option(..., "folder or URI to write the samples to")
    n: int = option(1000, "number of samples", unit="images", ge=1)
    label: str | None = option(None, "what to draw; by default the model's label, if it has only one")
    model: NameOrAddress | None = option(
        None, "registered model NAME or NAME/VERSION, or a folder with generator.json; by default the label's champion"
    )
    seed: int = option(0, "sample i is the image of seed + i, as in the service", ge=0, lt=2**31)
    truncation: float = option(1.0, "factor on the latents; less gives more typical, less varied images", gt=0, le=1)
    format: Literal["png", "parquet"] = option("png", "one PNG per sample, or Parquet files of PNG, label and seed")
    chunk_images: int = option(
        500, "samples per task; a killed job draws at most this many again for each task", unit="images", ge=1
    )


class ExportSettings(StorageSettings):
    """All settings of `jobs/export.py`."""

    group: ClassVar[str] = "export"

    model: NameOrAddress = option(
        ..., "registered generator or classifier, NAME or NAME/VERSION, or a folder with its JSON file"
    )
    format: Literal["onnx"] = option("onnx", "format of the file")
    output: Address = option(..., "file to write")
    log: bool = option(False, "also keep the file beside the registered version in MLflow, under onnx/")
