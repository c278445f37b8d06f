"""Settings of a training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from raygan.runtime.settings import BatchNormOptions, StorageSettings, WorkerOptions
from raygan.settings import Address, ImageSize, NameOrAddress, Settings, option


class NetworkOptions(Settings):
    """The generator's and the critic's shape."""

    group: ClassVar[str] = "networks"

    image_size: ImageSize = option(
        64, "side of the square images; must equal the shards'", unit="px: 32, 64, 128 or 256"
    )
    z_dim: int = option(200, "length of the latent vector", ge=1, le=4096)
    width: int = option(
        64, "channels of the block next to the image; deeper blocks have up to 16 times as many", ge=1, le=512
    )
    critic_norm: Literal["instance", "batch", "none"] = option(
        "instance", "normalisation in the critic: per image, over the batch (DCGAN), or none"
    )
    conditional: bool = option(False, "one generator for all labels, told which to draw; without --label")


class ObjectiveOptions(Settings):
    """What is minimised, and how."""

    group: ClassVar[str] = "objective and optimisers"

    objective: Literal["wgan-gp", "dcgan", "r3gan"] = option(
        "wgan-gp", "adversarial objective: Wasserstein with gradient penalty, BCE, or relativistic with R1 and R2"
    )
    batch_size: int = option(64, "images in the global batch, all workers together", unit="images", ge=2)
    n_critic: int = option(5, "critic steps to each generator step", ge=1, le=100)
    generator_lr: float = option(1e-4, "Adam's learning rate of the generator", gt=0, le=1)
    critic_lr: float = option(1e-4, "Adam's learning rate of the critic", gt=0, le=1)
    beta1: float = option(0.0, "Adam's beta 1", ge=0, lt=1)
    beta2: float = option(0.9, "Adam's beta 2", ge=0, lt=1)
    penalty_weight: float = option(10.0, "weight of the gradient penalty (lambda; gamma of r3gan)", ge=0)
    penalty_every: int = option(
        1, "take the penalty every so many critic steps, with its weight multiplied by as many", unit="steps", ge=1
    )
    augment: list[Literal["color", "translation", "cutout"]] = option(
        None, "DiffAugment changes shown to the critic, of reals and fakes alike", default_factory=list
    )
    mirror: bool = option(False, "flip reals left to right at random")
    ema_kimg: float = option(
        10.0,
        "half-life of the generator's moving average (EMA), which is the model users get; 0 gives them the generator",
        unit="thousands of images",
        ge=0,
    )
    ema_ramp: float = option(
        0.05, "the half-life is at most this share of the images seen so far; 0 leaves it fixed", ge=0, le=1
    )
    warmup_kimg: float = option(
        0.0, "both learning rates rise from zero over the first", unit="thousands of images", ge=0
    )
    decay: float = option(
        0.0, "last share of the run over which both learning rates fall to zero; needs --epochs or --kimg", ge=0, le=1
    )
    clip_gradient: float = option(0.0, "longest gradient of either network; 0 clips nothing", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the convolutions; auto takes bf16 where the hardware computes it natively"
    )
    seed: int = option(0, "seed of the weights and of every random draw", ge=0, lt=2**31)


class LengthOptions(Settings):
    """How long a run is, and what happens how often on its way. The clock is images seen."""

    group: ClassVar[str] = "length and cadence"

    epochs: int = option(80, "passes over the photos", unit="epochs", ge=1)
    kimg: float | None = option(None, "length instead of epochs", unit="thousands of images", gt=0)
    minutes: float | None = option(
        None, "stop after so long a training, if the length isn't reached before", unit="minutes", gt=0
    )
    log_every: float | None = option(
        None, "between metrics; by default a hundredth of the run", unit="thousands of images", gt=0
    )
    snapshot_every: float | None = option(
        None, "between sample grids; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    checkpoint_every: float | None = option(
        None, "between checkpoints; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    quality_every: float | None = option(
        None,
        "between measurements of quality (KID, memorisation), which choose the best checkpoint; by default a tenth "
        "of the run and at least four images for each sample, 0 for never",
        unit="thousands of images",
        ge=0,
    )
    quality_samples: int = option(500, "samples that quality is measured on", unit="images", ge=16, le=50_000)
    quality_network: NameOrAddress = option(
        "efficientnet_lite0",
        "feature network of KID: efficientnet_lite0, googlenet (the registered classifier), or a file or folder of "
        "GoogLeNet weights",
    )
    keep_checkpoints: int = option(2, "checkpoints kept: the best by quality, and always the last", ge=1)
    log_checkpoints: Literal["best", "last", "none"] = option(
        "none", "training checkpoint that is copied to MLflow at the end; the generator always is"
    )


class TrainSettings(BatchNormOptions, WorkerOptions, LengthOptions, ObjectiveOptions, NetworkOptions, StorageSettings):
    """Everything `jobs/train.py` can be told."""

    group: ClassVar[str] = "run"
    resumes: ClassVar[bool] = True
    preset_package: ClassVar[str] = "raygan.training.presets"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "train on this label only; by default on all labels together")
    name: str | None = option(None, "name of the run; an interrupted run of the same name is resumed")
    promote: bool = option(True, "point the registered model's serving alias at this run's generator")
    allow_changes: bool = option(False, "resume a run although settings or shards differ from those it began with")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.conditional and self.label is not None:
            raise ValueError(f"conditional draws every label, so label can't be {self.label}: leave one of them out")
        if self.objective != "dcgan" and self.critic_norm == "batch":
            raise ValueError(
                f"critic_norm can't be batch with objective {self.objective}: its penalty is defined per image"
            )
        return self
