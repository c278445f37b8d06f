"""Settings of sampling."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, NameOrAddress, option


class SampleSettings(StorageSettings):
    """Everything `jobs/sample.py` can be told."""

    group: ClassVar[str] = "samples"
    resumes: ClassVar[bool] = True

    output: Address = option(..., "folder or URI that the samples are written to")
    n: int = option(1000, "samples", unit="images", ge=1)
    label: str | None = option(None, "what to draw; by default what the model draws, if that is one thing")
    model: NameOrAddress | None = option(
        None, "registered model NAME or NAME/VERSION, or a folder with generator.json; by default the label's champion"
    )
    seed: int = option(0, "sample i is the image of seed + i, here as in the service", ge=0, lt=2**31)
    truncation: float = option(1.0, "latents are scaled by it: less is more typical and less varied", gt=0, le=1)
    format: Literal["png", "parquet"] = option("png", "a PNG file a sample, or Parquet files of PNG, label and seed")
    chunk_images: int = option(
        500, "samples that one task draws, and that a killed job draws again at most, per task", unit="images", ge=1
    )
