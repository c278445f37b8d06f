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

    input: list[Address] | None = option(None, "folders of your photos; by default raygan draws faces itself")
    label: str | None = option(
        None, "train on this label only; by default one generator draws every label, or the drawn cats"
    )
    epochs: int | None = option(None, "passes over the photos; by default a number that suits them", ge=1)
    minutes: float | None = option(
        None,
        "time for everything up to the service: trains the best preset for the image size and ends with a report card",
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
