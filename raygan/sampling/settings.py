"""Settings of `jobs/sample.py` and `jobs/export.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.runtime.settings import OF_RUNS, StorageSettings
from raygan.settings import Address, NameOrAddress, option


class SampleSettings(StorageSettings):
    """All settings of `jobs/sample.py`."""

    group: ClassVar[str] = "samples"
    resumes: ClassVar[bool] = True

    output: Address = option(..., "folder or URI to write the samples to")
    n: int = option(1000, "number of samples", unit="images", ge=1)
    label: str | None = option(None, "label to draw; by default the model's, if it draws only one")
    model: NameOrAddress | None = option(
        None, "registered NAME or NAME/VERSION, or a folder with generator.json; by default the label's champion"
    )
    seed: int = option(
        0, "seed of the first sample; sample i is the image that the service gives for seed + i", ge=0, lt=2**31
    )
    truncation: float = option(
        1.0, "factor on the latents; lower values give more typical, less varied images", gt=0, le=1
    )
    format: Literal["png", "parquet"] = option(
        "png", "one PNG file per sample, or Parquet files of image (PNG), label and seed"
    )
    chunk_images: int = option(
        500, "maximum samples per task; a killed job repeats no more than this per running task", unit="images", ge=1
    )


class ExportSettings(StorageSettings):
    """All settings of `jobs/export.py`."""

    group: ClassVar[str] = "export"
    unlisted: ClassVar[frozenset[str]] = OF_RUNS

    model: NameOrAddress = option(
        ...,
        "generator or classifier: a registered NAME (its champion) or NAME/VERSION, or a folder with generator.json or "
        "classifier.json",
    )
    format: Literal["onnx"] = option("onnx", "format of the file")
    output: Address = option(..., "file or URI to write")
    log: bool = option(False, "also store the file with the registered version in MLflow, under onnx/")
