"""Settings of the benchmarks and the fault drills."""

from __future__ import annotations

import os
from typing import ClassVar, Literal, get_args

from pydantic import model_validator

from raygan.models.registry import SECOND_FEATURES
from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, Settings, option
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings


def _need_folder(name: str, path: str | None) -> None:
    """Raise ValueError if a file that is written at the end has no folder: better before the work than after."""
    if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"{name}: there is no folder {os.path.dirname(os.path.abspath(path))}")


class NumbersFile(Settings):
    """Where the numbers go."""

    group: ClassVar[str] = "numbers"

    json_file: str | None = option(None, "JSON file to write the numbers to")

    @model_validator(mode="after")
    def _has_a_folder(self) -> NumbersFile:
        _need_folder("json_file", self.json_file)
        return self


class PrepareBenchmarkSettings(NumbersFile):
    """Settings of `jobs/benchmark.py prepare`."""

    group: ClassVar[str] = "benchmark"

    input: list[Address] = option(
        None, "folders of photos to measure with; not needed with --compare", default_factory=list
    )
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    rounds: int = option(2, "repetitions; the best is reported", ge=1, le=100)
    outlier: bool = option(True, "measure speed also with the outlier filter, and memory only with it")
    memory: list[int] = option(
        None,
        "measure memory instead of speed, with each of these numbers of photos",
        unit="photos",
        default_factory=list,
    )
    megapixels: float | None = option(
        None,
        "measure speed with JPEGs of this size, made from the photos",
        unit="megapixels",
        ge=0.1,
        le=50,
    )
    large_photos: int = option(60, "number of photos to enlarge for --megapixels", unit="photos", ge=1)
    compare: list[int] = option(
        None,
        "measure the comparison step instead, with each of these numbers of synthetic records",
        unit="photos",
        default_factory=list,
    )
    scratch: str | None = option(
        None, "folder for the files of a memory measurement; by default the system's temporary folder"
    )

    @model_validator(mode="after")
    def _has_something_to_measure(self) -> PrepareBenchmarkSettings:
        if not self.input and not self.compare:
            raise ValueError("input: give folders of photos, or --compare")
        return self


class TrainStepBenchmarkSettings(NumbersFile):
    """Settings of `jobs/benchmark.py train-step`."""

    group: ClassVar[str] = "benchmark"

    presets: list[str] = option(
        None,
        "presets to measure, all with --image-size, --width and --batch-size",
        default_factory=lambda: ["wgan-gp-128", "wgan-gp-64", "best-64", "dcgan-64"],
    )
    precisions: list[Literal["fp32", "tf32", "bf16"]] = option(
        None,
        "precisions to measure; by default fp32 (tf32 on a GPU), and bf16 where the hardware computes it",
        default_factory=list,
    )
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(64, "channels of the block next to the image", ge=1, le=512)
    batch_size: int = option(64, "real images per critic step", unit="images", ge=1)
    rounds: int = option(5, "repetitions; the median is reported", ge=1, le=100)
    seconds: float = option(3.0, "length of each measurement", unit="s", gt=0)


class GpuBenchmarkSettings(NumbersFile):
    """Settings of `jobs/benchmark.py gpu`."""

    group: ClassVar[str] = "benchmark"
    resumes: ClassVar[bool] = True

    folder: Address = option(..., "folder for the plan, photos and results; copy it to the GPU machine")
    data: Address | None = option(
        None, "shards to take photos from; with them, the plan and the photos are written into the folder"
    )
    label: str | None = option(None, "label of the photos; by default all labels together")
    photos: int = option(1000, "number of photos to take, evenly spread", unit="photos", ge=16)
    presets: list[str] = option(
        None,
        "presets to measure next to the textbook; the last one also gets a timeline",
        default_factory=lambda: ["wgan-gp-128", "wgan-gp-64", "best-64"],
    )
    width: int = option(64, "channels of the block next to the image, for --presets", ge=1, le=512)
    batches: list[int] = option(None, "batch sizes to measure", unit="images", default_factory=lambda: [64, 128])
    rounds: int = option(3, "repetitions; the median is reported", ge=1, le=100)
    seconds: float = option(2.0, "length of each measurement", unit="s", gt=0)
    train_preset: str = option("best-64", "preset to train, at its own width")
    textbook: bool = option(True, "also train textbook WGAN-GP")
    minutes: float = option(8.0, "length of each training", unit="minutes", gt=0)
    points: int = option(4, "number of evenly spaced times at which KID is measured", ge=1, le=100)
    page: str | None = option(None, "Markdown file to write the tables into; by default raygan/benchmarks/README.md")


class TrainBenchmarkSettings(NumbersFile, TrainSettings):
    """Settings of `jobs/benchmark.py train`."""

    group: ClassVar[str] = "benchmark"
    resumes: ClassVar[bool] = False

    measure_kimg: float = option(6.0, "length of each training", unit="thousands of images", gt=0)
    workers: list[int] = option(
        None,
        "numbers of workers to measure; in `train` they share all cores, in `scale` each has one",
        default_factory=lambda: [1, 2],
    )
    rounds: int = option(3, "repetitions; the median is reported", ge=1, le=100)


class QualityBenchmarkSettings(NumbersFile, StorageSettings):
    """Settings of `jobs/benchmark.py quality`."""

    group: ClassVar[str] = "benchmark"
    resumes: ClassVar[bool] = True

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "label to train on; by default all labels together")
    presets: list[str] = option(None, "presets to train", default_factory=lambda: ["best-64", "wgan-gp-64"])
    textbook: bool = option(True, "also train textbook WGAN-GP")
    minutes: float = option(20.0, "length of each training", unit="minutes", gt=0)
    points: int = option(4, "number of evenly spaced times at which KID is measured", ge=1, le=100)
    every: float = option(2.0, "interval between checkpoints", unit="thousands of images", gt=0)
    samples: int = option(1000, "samples per measurement of KID", unit="images", ge=16, le=50_000)
    network: str = option(SECOND_FEATURES, "feature network, as in jobs/train.py --quality-network")
    picture: str | None = option(None, "PNG file to write, with a plot of KID against time, and samples")

    @model_validator(mode="after")
    def _picture_has_a_folder(self) -> QualityBenchmarkSettings:
        _need_folder("picture", self.picture)
        return self


class TuneBenchmarkSettings(NumbersFile, TuneSettings):
    """Settings of `jobs/benchmark.py tune`."""

    resumes: ClassVar[bool] = False


#: What `scale --photos` measures, see `raygan.benchmarks.reading`.
ReadingPart = Literal["first-step", "bounded", "alone", "ray-data"]


class ScaleBenchmarkSettings(TrainBenchmarkSettings):
    """Settings of `jobs/benchmark.py scale`."""

    input: list[Address] = option(None, "folders of photos; with them, prepare is measured, too", default_factory=list)
    prepare_photos: int = option(6000, "photos per core for prepare, repeated from --input", ge=100)
    photos: list[int] = option(
        None,
        "measure reading instead (seconds to the first step, memory, images/s, bytes between nodes) on data sets of "
        "each of these numbers of photos, made of hard links to the shards of --data, a local folder",
        unit="photos",
        default_factory=list,
    )
    reading: list[ReadingPart] = option(
        None,
        "parts of reading to measure with --photos: the first step and memory, a training whose data exceeds its "
        "memory bound, readers alone, or Ray Data next to them; the last needs raw shards",
        default_factory=lambda: list(get_args(ReadingPart)),
    )


#: What `serve` is compared with, and itself, as `raygan.benchmarks.serve_peers` names them.
Server = Literal["fastapi", "fastapi-fast", "litserve", "raygan", "raygan-proxies", "composed"]


class ServeBenchmarkSettings(NumbersFile):
    """Settings of `jobs/benchmark.py serve`."""

    group: ClassVar[str] = "benchmark"

    servers: list[Server] = option(
        None, "servers to measure, besides the bare models", default_factory=lambda: list(get_args(Server))
    )
    clients: list[int] = option(None, "numbers of concurrent clients", default_factory=lambda: [1, 8, 32])
    images: list[int] = option(None, "images per request", unit="1 to 64", default_factory=lambda: [1, 16])
    seconds: float = option(10.0, "length of each measurement", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class ServeDrillSettings(NumbersFile):
    """Settings of `jobs/benchmark.py serve-drill`."""

    group: ClassVar[str] = "drill"

    faults: bool = option(False, "kill a model replica, and the gateway")
    hostile: bool = option(False, "also send hostile requests and uploads, and watch the service's memory")
    clients: int = option(64, "concurrent clients, each sending its next request once answered", ge=1, le=1024)
    seconds: float = option(120.0, "length of the drill", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class DrillSettings(NumbersFile):
    """Settings of `jobs/drill.py`."""

    group: ClassVar[str] = "drill"

    drills: list[
        Literal[
            "worker",
            "controller",
            "node",
            "four",
            "notice",
            "submitted",
            "reading",
            "prepare",
            "tune",
            "serve",
            "mlflow",
            "storage",
        ]
    ] = option(
        None,
        "what to break, in the order of the table in raygan/benchmarks/faults/README.md; by default everything",
        default_factory=list,
    )
    short: bool = option(False, "use shorter jobs, as a smoke test; times are not comparable")
