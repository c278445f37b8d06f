"""Settings of a training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from raygan.data.settings import ReadOptions
from raygan.models.registry import ARCHITECTURES, DEFAULT_FEATURES, FEATURE_NETWORKS
from raygan.runtime.settings import (
    ArithmeticOptions,
    BatchNormOptions,
    GradientOptions,
    Promotion,
    StorageSettings,
    WorkerOptions,
)
from raygan.settings import Address, ImageSize, NameOrAddress, OneOf, Settings, option
from raygan.training.registry import OBJECTIVES, Policy
from raygan.training.schedule import rates_after


def _rate_change(text: str) -> str:
    rates_after([text], 0)
    return text


#: Learning rates from some moment on, as in ``40:0.0005:0.0002``.
RateChange = Annotated[str, AfterValidator(_rate_change)]


class NetworkOptions(Settings):
    """The generator's and the critic's shape."""

    group: ClassVar[str] = "networks"

    architecture: Annotated[str, OneOf(ARCHITECTURES)] = option(
        "dcgan",
        "networks: dcgan, skip (DCGAN with skip connections in the generator) or residual (R3GAN's)",
    )
    image_size: ImageSize = option(
        64, "side of the square images; must equal the shards'", unit="px: 32, 64, 128 or 256"
    )
    z_dim: int = option(200, "length of the latent vector", ge=1, le=4096)
    width: int = option(
        64, "channels of the block next to the image; deeper blocks have up to 16 times as many", ge=1, le=512
    )
    critic_norm: Literal["instance", "batch", "none"] = option(
        "instance",
        "normalization in the critic: per image, over the batch (as in DCGAN) or none; architecture residual has none",
    )
    conditional: bool = option(False, "one class-conditional generator for all labels; not with --label")


class ObjectiveOptions(Settings):
    """Losses and how they are minimized."""

    group: ClassVar[str] = "objective and optimizers"

    objective: Annotated[str, OneOf(OBJECTIVES)] = option("wgan-gp", "adversarial objective")
    batch_size: int = option(64, "images in the global batch, over all workers", unit="images", ge=2)
    n_critic: int = option(5, "critic steps per generator step", ge=1, le=100)
    generator_lr: float = option(1e-4, "Adam's learning rate of the generator", gt=0, le=1)
    critic_lr: float = option(1e-4, "Adam's learning rate of the critic", gt=0, le=1)
    rate_changes: list[RateChange] = option(
        None,
        "learning rates from KIMG thousand images on, as KIMG:GENERATOR:CRITIC; `tune --scheduler pbt` writes them",
        default_factory=list,
    )
    beta1: float = option(0.0, "Adam's beta 1", ge=0, lt=1)
    beta2: float = option(0.9, "Adam's beta 2", ge=0, lt=1)
    penalty_weight: float = option(10.0, "weight of the gradient penalty (lambda or gamma in papers)", ge=0)
    penalty_every: int = option(1, "apply the penalty every N critic steps, at N times its weight", unit="steps", ge=1)
    augment: list[Policy] = option(
        None, "DiffAugment policies for all images that the critic sees, real and generated", default_factory=list
    )
    augment_target: float = option(
        0.0,
        "ADA: augment only as many images as keep the critic this certain of training photos; 0 augments all. Karras "
        "et al. 2020 chose 0.6 for scores like dcgan's; r3gan's critic compares pairs and is at 0.2 to 0.4 when all "
        "images are augmented",
        ge=0,
        lt=1,
    )
    mirror: bool = option(False, "flip photos left to right at random")
    ema_kimg: float = option(
        10.0,
        "half-life of the generator's moving average (EMA), the registered model; 0 registers the generator itself",
        unit="thousands of images",
        ge=0,
    )
    ema_ramp: float = option(
        0.05, "cap the EMA's half-life at this share of the images seen so far; 0 turns the cap off", ge=0, le=1
    )
    warmup_kimg: float = option(
        0.0, "length of the warm-up, in which both learning rates rise from zero", unit="thousands of images", ge=0
    )
    decay: float = option(
        0.0,
        "share of the run, at its end, over which both learning rates fall to zero; the run's length is that of "
        "--epochs or --kimg, even if --minutes ends it earlier",
        ge=0,
        le=1,
    )
    freeze_critic: int = option(
        0,
        "freeze this many critic stages, counted from the image, at the weights of --begin-from (FreezeD)",
        ge=0,
    )
    clip_gradient: float = option(
        0.0, "maximum norm of either network's gradient, to which it is clipped; 0 turns it off", ge=0
    )
    seed: int = option(0, "seed of the weights and of every random draw", ge=0, lt=2**31)


class StepOptions(BatchNormOptions, GradientOptions, ArithmeticOptions, ObjectiveOptions):
    """All settings that a training step depends on."""

    @classmethod
    def of(cls, settings: StepOptions) -> StepOptions:
        """Only these settings, out of a job's."""
        return cls.model_construct(**{name: getattr(settings, name) for name in cls.model_fields})


class LengthOptions(Settings):
    """How long a run is, and how often things happen. Progress is counted in images seen."""

    group: ClassVar[str] = "length and cadence"

    epochs: int = option(80, "passes over the photos", unit="epochs", ge=1)
    kimg: float | None = option(None, "length of the run, instead of --epochs", unit="thousands of images", gt=0)
    minutes: float | None = option(
        None,
        "stop after this many minutes of training, if the run hasn't ended by then; metrics, pictures, checkpoints and "
        "measurements whose interval is not given take at most about a twentieth of them",
        unit="minutes",
        gt=0,
    )
    log_every: float | None = option(
        None,
        "interval between metrics; by default a hundredth of the run, or of --minutes",
        unit="thousands of images",
        gt=0,
    )
    snapshot_every: float | None = option(
        None, "interval between sample grids; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    checkpoint_every: float | None = option(
        None, "interval between checkpoints; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    checkpoint_minutes: float = option(
        10.0, "maximum time between checkpoints; a crash loses no more than this", unit="minutes", gt=0
    )
    quality_every: float | None = option(
        None,
        "interval between measurements of quality (KID, memorization), which choose the best checkpoint; by default "
        "a tenth of the run, but at least four training images per sample; 0 turns it off",
        unit="thousands of images",
        ge=0,
    )
    quality_samples: int = option(500, "samples per measurement of quality", unit="images", ge=16, le=50_000)
    quality_network: NameOrAddress = option(DEFAULT_FEATURES, f"feature network of KID: {FEATURE_NETWORKS}")
    keep_checkpoints: int = option(2, "number of checkpoints to keep: the best by quality, and always the last", ge=1)
    log_checkpoints: Literal["best", "last", "none"] = option(
        "none", "training checkpoint to copy to MLflow at the end; the generator is always copied"
    )


class TrainSettings(ReadOptions, WorkerOptions, LengthOptions, StepOptions, NetworkOptions, StorageSettings):
    """All settings of `jobs/train.py`."""

    group: ClassVar[str] = "run"
    resumes: ClassVar[bool] = True
    preset_package: ClassVar[str] = "raygan.training.presets"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "train on this label only; by default on all labels")
    begin_from: NameOrAddress | None = option(
        None,
        "begin with another generator's weights (fine-tuning): a registered NAME or NAME/VERSION, or a run's name (for "
        "its latest checkpoint) or a checkpoint's folder, which also have a critic; of the same image size, or of half "
        "of it",
    )
    name: str | None = option(
        None, "name of the run (by default a new one, which is printed); an interrupted run of the same name is resumed"
    )
    promote: Promotion = option(
        "better",
        "when the new version becomes champion, which is served: if its KID beats the champion's by more than the "
        "standard error or there is no champion (better); always (--promote); or never (--no-promote)",
    )
    allow_changes: bool = option(False, "resume a run even if settings or shards have changed since it began")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.conditional and self.label is not None:
            raise ValueError(f"conditional draws every label, so label can't be {self.label}: leave one of them out")
        if self.augment_target and not self.augment:
            raise ValueError("augment_target adapts augment, which is empty: give --augment color translation")
        if self.augment_target and "certainty" not in OBJECTIVES.load(self.objective).panels:
            raise ValueError(
                f"augment_target needs the term `certainty`, which objective {self.objective} doesn't give"
            )
        if self.freeze_critic and self.begin_from is None:
            raise ValueError(
                "freeze_critic keeps what begin_from gives, and it gives nothing: leave one in or both out"
            )
        # Loading an objective imports torch, so only where the answer matters.
        if self.critic_norm == "batch" and not OBJECTIVES.load(self.objective).allows_batch_norm:
            raise ValueError(
                f"critic_norm can't be batch with objective {self.objective}, whose losses are defined per image"
            )
        return self
