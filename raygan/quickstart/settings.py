"""Settings of the quickstart."""

from __future__ import annotations

from typing import ClassVar

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, option


class QuickstartSettings(StorageSettings):
    """Everything `jobs/quickstart.py` can be told."""

    group: ClassVar[str] = "quickstart"
    resumes: ClassVar[bool] = True

    input: list[Address] | None = option(None, "folders of your own photos; by default faces that raygan draws itself")
    label: str | None = option(None, "train this label only; by default every label, one generator each")
    epochs: int | None = option(None, "passes over the photos; by default as many as suit their number", ge=1)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    port: int = option(8000, "port that the samples are served on", ge=1, le=65535)
    serve: bool = option(True, "serve samples after training, until Ctrl-C")
