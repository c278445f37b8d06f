"""Settings of the report card."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from raygan.metrics.registry import METRICS
from raygan.models.registry import DEFAULT_FEATURES, FEATURE_NETWORKS, INCEPTION, SECOND_FEATURES
from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, NameOrAddress, option


class EvaluateSettings(StorageSettings):
    """Everything that can be set for a report card."""

    group: ClassVar[str] = "report card"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, to compare with")
    output: Address | None = option(
        None, f"folder for the report, which has {', '.join(METRICS.names())}; by default <storage>/reports/<name>"
    )
    label: list[str] = option(None, "labels to evaluate; by default all that the generators draw", default_factory=list)
    model: list[NameOrAddress] = option(
        None,
        "generators to evaluate: a registered NAME or NAME/VERSION, or the folder of a generator or checkpoint; "
        "by default each label's champion",
        default_factory=list,
    )
    # 6: `raygan.metrics.distances.LEAST`, which needs torch.
    samples: int = option(2000, "number of images of each label to draw from each generator", unit="images", ge=6)
    real_images: int = option(
        5000, "maximum number of real (training) photos of each label to compare with", unit="photos", ge=1
    )
    network: list[NameOrAddress] = option(
        None,
        f"feature networks, side by side in the table: {FEATURE_NETWORKS}; googlenet means --classifier, if given",
        default_factory=lambda: [SECOND_FEATURES, DEFAULT_FEATURES],
    )
    inception_weights: str | None = option(
        None, f"file with torch-fidelity's weights for network {INCEPTION}; by default they are downloaded"
    )
    classifier: NameOrAddress | None = option(
        None, "classifier folder, for agreement and confidence; by default the registered one, if any"
    )
    baselines: bool = option(
        False,
        "also evaluate real photos, an untrained generator and noise; half of the real photos then serve as the "
        "baseline, and everything is compared with the other half",
    )
    seed: int = option(0, "seed of the samples and of every random choice", ge=0, lt=2**31)
    name: str | None = option(None, "name of the report; by default report-TIME")

    @model_validator(mode="after")
    def _networks(self) -> EvaluateSettings:
        if not self.network:
            raise ValueError(f"network needs a name, such as {SECOND_FEATURES}")
        if self.inception_weights and INCEPTION not in self.network:
            raise ValueError(f"inception_weights are for network {INCEPTION}, which is not among network")
        return self
