"""Settings of `jobs/classify.py` and `jobs/usefulness.py`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from raygan.data.settings import ReadOptions
from raygan.runtime.settings import ArithmeticOptions, BatchNormOptions, Promotion, StorageSettings, WorkerOptions
from raygan.settings import Address, NameOrAddress, Settings, option


class ClassifierOptions(ArithmeticOptions):
    """How GoogLeNet is trained."""

    group: ClassVar[str] = "classifier"

    batch_size: int = option(32, "images in the global batch, over all workers", unit="images", ge=2)
    learning_rate: float = option(1e-3, "AdamW's peak learning rate; it falls linearly to 0", gt=0, le=1)
    weight_decay: float = option(0.05, "AdamW's weight decay", ge=0, le=1)
    warmup: float = option(0.05, "share of the training in which the learning rate rises from 0", ge=0, lt=1)
    label_smoothing: float = option(0.0, "share of each target spread over all labels", ge=0, lt=1)
    auxiliary_weight: float = option(
        0.3, "weight of each of the paper's two auxiliary heads in the loss; 0 leaves them out", ge=0, le=1
    )
    mirror: bool = option(True, "flip images left to right at random")
    shift: float = option(0.0625, "maximum random shift, as a share of the side", ge=0, le=0.5)
    ema_ramp: float = option(
        0.05,
        "half-life of the weights' moving average (EMA), which becomes the model, as a share of the training so far; 0 "
        "turns it off",
        ge=0,
        le=1,
    )
    seed: int = option(0, "seed of the weights and of every random draw", ge=0, lt=2**31)


class ImageSources(Settings):
    """Where a classifier's training images come from."""

    group: ClassVar[str] = "images"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, with two labels or more")
    model: list[NameOrAddress] = option(
        None,
        "generators to draw from: a registered NAME or NAME/VERSION, or a folder; by default each label's champion (in "
        "usefulness, only with --elsewhere, which this flag implies)",
        default_factory=list,
    )


class ClassifySettings(ImageSources, ReadOptions, BatchNormOptions, WorkerOptions, ClassifierOptions, StorageSettings):
    """All settings of `jobs/classify.py`."""

    group: ClassVar[str] = "run"
    resumes: ClassVar[bool] = True

    epochs: int = option(20, "passes over the training images", unit="epochs", ge=1)
    patience: int = option(
        10,
        "stop after this many epochs without a lower validation loss, but never in the first half of the training, "
        "while the learning rate is high; 0 turns it off",
        unit="epochs",
        ge=0,
    )
    checkpoint_minutes: float = option(
        10.0,
        "maximum time between checkpoints, besides those after each epoch; a crash loses no more than this",
        unit="minutes",
        gt=0,
    )
    real_fraction: float = option(
        1.0, "share of real photos among the training images: 1 is real only, 0 generated only", ge=0, le=1
    )
    real_images: int | None = option(
        None, "number of real photos to train on, drawn evenly from the labels; by default all", unit="photos", ge=1
    )
    generated_images: int | None = option(
        None,
        "number of generated images to train on; by default as many as --real-fraction requires (for 0, as many as "
        "there are real photos)",
        unit="images",
        ge=1,
    )
    weights: str | None = option(
        None,
        "start from ImageNet weights: a file (.pth or .safetensors), or imagenet for torchvision's download; by "
        "default from random weights",
    )
    name: str | None = option(
        None, "name of the run (by default a new one, which is printed); an interrupted run of the same name is resumed"
    )
    promote: Promotion = option(
        "better",
        "when the new version becomes champion, which is served: if it has learned from real photos only, and its "
        "accuracy beats the champion's by more than the standard error or there is no champion (better); always "
        "(--promote); or never (--no-promote)",
    )
    allow_changes: bool = option(False, "resume a run even if settings or shards have changed since it began")

    @model_validator(mode="after")
    def _uses_all(self) -> ClassifySettings:
        if self.real_fraction == 1 and (self.generated_images or self.model):
            given = "generated_images" if self.generated_images else "model"
            raise ValueError(f"{given} is for generated images, but real_fraction 1 uses none: give a smaller fraction")
        if self.real_fraction == 0 and self.real_images:
            raise ValueError("real_images is for real photos, but real_fraction 0 uses none: give a larger fraction")
        return self


class UsefulnessSettings(ImageSources, ClassifierOptions, StorageSettings):
    """All settings of `jobs/usefulness.py`."""

    group: ClassVar[str] = "study"
    resumes: ClassVar[bool] = True

    elsewhere: bool = option(
        False,
        "use existing generators (champions, or --model) instead of training one per real set; they may know photos "
        "that the set lacks, so the result doesn't show what generated images add to few photos",
    )
    generator_preset: str = option("best-64", "jobs/train.py preset for the generators")
    generator_kimg: float = option(20.0, "length of each generator's training", unit="thousands of images", gt=0)
    real_sizes: list[int] = option(
        None,
        "sizes of the real sets to compare; by default 100, and with --elsewhere also 400 and all training photos",
        unit="photos",
        default_factory=list,
    )
    real_fractions: list[float] = option(
        None,
        "shares of real photos in the training images: 1 adds nothing, 0.5 adds as many generated as real",
        default_factory=lambda: [1.0, 0.5, 0.2],
    )
    seeds: int = option(3, "number of trainings of each kind, each with its own seed", ge=1, le=100)
    images: int = option(12_800, "images each training sees, repeats included", unit="images", ge=2)
    cpus_per_trial: float = option(1.0, "CPU cores, and threads, per training", unit="cores", gt=0)
    gpus_per_trial: float | None = option(
        None,
        "GPUs per training (with 0.5, two share one); by default 0.25 if the cluster has GPUs",
        ge=0,
    )
    name: str | None = option(
        None,
        "name of the study (by default a new one, which is printed); an interrupted study of the same name is resumed",
    )

    @property
    def from_elsewhere(self) -> bool:
        """Whether the generators are there already."""
        return self.elsewhere or bool(self.model)

    @model_validator(mode="after")
    def _makes_sense(self) -> UsefulnessSettings:
        if any(not 0 < fraction <= 1 for fraction in self.real_fractions):
            raise ValueError(
                "real_fractions must be above 0 and at most 1; generated only is measured with --elsewhere, as CAS"
            )
        if any(size < 2 for size in self.real_sizes):
            raise ValueError("real_sizes must be at least 2 photos each")
        return self
