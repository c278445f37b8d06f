"""Settings of the report card."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, NameOrAddress, option


class EvaluateSettings(StorageSettings):
    """Everything `jobs/evaluate.py` can be told."""

    group: ClassVar[str] = "report card"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, to compare with")
    output: Address | None = option(None, "folder of the report; by default <storage>/reports/<name>")
    label: list[str] = option(None, "labels to judge; by default all that the generators draw", default_factory=list)
    model: list[NameOrAddress] = option(
        None,
        "generators to judge: registered NAME, NAME/VERSION, or the folder of a generator or checkpoint; "
        "by default each label's champion",
        default_factory=list,
    )
    samples: int = option(2000, "images to draw of each label from each generator", unit="images", ge=1)
    real_images: int = option(5000, "real photos of each label to compare with, at most", unit="photos", ge=1)
    network: list[NameOrAddress] = option(
        None,
        "feature networks: efficientnet_lite0, googlenet (--classifier, or the registered one), a classifier folder, "
        "or inception_v3",
        default_factory=lambda: ["efficientnet_lite0"],
    )
    inception_weights: str | None = option(
        None, "torch-fidelity's file of Inception v3 weights; by default inception_v3 is downloaded"
    )
    classifier: NameOrAddress | None = option(
        None, "classifier folder for the agreement; by default the registered one, if any"
    )
    baselines: bool = option(
        False,
        "judge real photos, an untrained generator and noise too; half of the real photos are then compared with",
    )
    seed: int = option(0, "seed of the samples and of every random choice", ge=0, lt=2**31)
    name: str | None = option(None, "name of the report; by default the time")

    @model_validator(mode="after")
    def _judges(self) -> EvaluateSettings:
        if not self.network:
            raise ValueError("network needs a name, such as efficientnet_lite0")
        if self.inception_weights and "inception_v3" not in self.network:
            raise ValueError("inception_weights are for network inception_v3, which is not among network")
        return self
