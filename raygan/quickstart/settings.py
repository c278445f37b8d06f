"""Settings of the quickstart."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, option


class QuickstartSettings(StorageSettings):
    """The settings of `raygan quickstart`."""

    group: ClassVar[str] = "quickstart"
    resumes: ClassVar[bool] = True

    input: list[Address] | None = option(
        None, "your photos, in any form that jobs/prepare.py takes; by default, raygan draws faces"
    )
    label: str | None = option(
        None, "train on this label only; by default, on all labels (without --input, on cats only)"
    )
    epochs: int | None = option(None, "passes over the photos; by default a fixed number of images instead", ge=1)
    minutes: float | None = option(
        None,
        "total time before serving starts: trains the best preset for the image size, and writes a report card",
        unit="minutes",
        ge=5,
    )
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    port: int = option(8000, "port of the service", ge=1, le=65535)
    serve: bool = option(True, "serve samples after training, until Ctrl-C")

    @model_validator(mode="after")
    def _one_length(self) -> QuickstartSettings:
        if self.epochs and self.minutes:
            raise ValueError("give epochs or minutes, not both")
        return self
