"""Settings of the benchmarks and fault drills."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pydantic import model_validator

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, Settings, option
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings


def _need_folder(name: str, path: str | None) -> None:
    """Raise ValueError if there is no folder for a file that is written at the end: better said before the work."""
    if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"{name}: there is no folder {os.path.dirname(os.path.abspath(path))}")


class NumbersFile(Settings):
    """Where measurements are written to."""

    group: ClassVar[str] = "numbers"

    json_file: str | None = option(None, "JSON file to write the numbers to")

    @model_validator(mode="after")
    def _can_be_written(self) -> NumbersFile:
        _need_folder("json_file", self.json_file)
        return self


class PrepareBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py prepare` can be told."""

    group: ClassVar[str] = "benchmark"

    input: list[Address] = option(..., "folders of photos to measure with")
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    rounds: int = option(2, "times everything is measured; the best of each counts", ge=1, le=100)
    outlier: bool = option(True, "measure with the outlier filter too; of memory: with it instead of without")
    memory: list[int] = option(
        None, "measure memory, not speed, with so many photos each", unit="photos", default_factory=list
    )
    scratch: str | None = option(None, "folder for the repeated photos of a memory measurement")


class TrainStepBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py train-step` can be told."""

    group: ClassVar[str] = "benchmark"

    presets: list[str] = option(
        None,
        "presets whose objective, networks and cadence are measured, all of the size below",
        default_factory=lambda: ["wgan-gp-128", "wgan-gp-64", "best-64", "dcgan-64"],
    )
    precisions: list[Literal["fp32", "bf16"]] = option(
        None, "precisions; by default fp32, and bf16 where the hardware computes it", default_factory=list
    )
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(64, "channels of the block next to the image", ge=1, le=512)
    batch_size: int = option(64, "reals in a critic step", unit="images", ge=1)
    rounds: int = option(5, "times everything is measured; the median counts", ge=1, le=100)
    seconds: float = option(3.0, "how long each is measured in a round", unit="s", gt=0)


class TrainBenchmarkSettings(NumbersFile, TrainSettings):
    """Everything `jobs/benchmark.py train` can be told."""

    group: ClassVar[str] = "benchmark"

    measure_kimg: float = option(6.0, "length of each training", unit="thousands of images", gt=0)
    workers: list[int] = option(None, "numbers of workers that share the cores", default_factory=lambda: [1, 2])
    rounds: int = option(3, "times everything is measured; the median counts", ge=1, le=100)


class QualityBenchmarkSettings(NumbersFile, StorageSettings):
    """Everything `jobs/benchmark.py quality` can be told."""

    group: ClassVar[str] = "benchmark"
    resumes: ClassVar[bool] = True

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "train on this label only; by default on all labels together")
    presets: list[str] = option(None, "presets to train", default_factory=lambda: ["best-64", "wgan-gp-64"])
    textbook: bool = option(True, "train WGAN-GP as research repositories write it too")
    minutes: float = option(20.0, "how long each trains", unit="minutes", gt=0)
    points: int = option(4, "times at which KID is measured", ge=1, le=100)
    every: float = option(2.0, "images between two checkpoints", unit="thousands of images", gt=0)
    samples: int = option(1000, "samples that KID is measured on", unit="images", ge=16, le=50_000)
    network: str = option("efficientnet_lite0", "feature network, as in jobs/train.py --quality-network")
    picture: str | None = option(None, "PNG file to draw KID against time and the samples to")

    @model_validator(mode="after")
    def _has_a_place(self) -> QualityBenchmarkSettings:
        _need_folder("picture", self.picture)
        return self


class TuneBenchmarkSettings(NumbersFile, TuneSettings):
    """Everything `jobs/benchmark.py tune` can be told."""


class ScaleBenchmarkSettings(TrainBenchmarkSettings):
    """Everything `jobs/benchmark.py scale` can be told."""

    input: list[Address] = option(None, "folders of photos, to measure `prepare` too", default_factory=list)
    prepare_photos: int = option(6000, "photos for one core, which are those of --input repeated", ge=100)


class ServeBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py serve` can be told."""

    group: ClassVar[str] = "benchmark"

    servers: list[Literal["fastapi", "fastapi-fast", "litserve", "raygan"]] = option(
        None,
        "servers to measure beside the bare models; by default all",
        default_factory=lambda: ["fastapi", "fastapi-fast", "litserve", "raygan"],
    )
    clients: list[int] = option(None, "numbers of clients", default_factory=lambda: [1, 8, 32])
    images: list[int] = option(None, "images in a request", unit="1 to 64", default_factory=lambda: [1, 16])
    seconds: float = option(10.0, "how long each number of clients asks", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class ServeDrillSettings(NumbersFile):
    """Everything `jobs/benchmark.py serve-drill` can be told."""

    group: ClassVar[str] = "drill"

    faults: bool = option(False, "kill a generator replica, a classifier replica and the gateway meanwhile")
    hostile: bool = option(False, "send hostile requests and uploads too, and watch the service's memory")
    clients: int = option(64, "clients that ask as soon as they are answered", ge=1, le=1024)
    seconds: float = option(120.0, "how long", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class DrillSettings(NumbersFile):
    """Everything `jobs/drill.py` can be told."""

    group: ClassVar[str] = "drill"

    drills: list[
        Literal[
            "worker",
            "controller",
            "node",
            "four",
            "notice",
            "submitted",
            "prepare",
            "tune",
            "serve",
            "mlflow",
            "storage",
        ]
    ] = option(None, "what is broken; by default everything", default_factory=list)
    short: bool = option(False, "with shorter jobs, to see that everything works; times are not comparable")
