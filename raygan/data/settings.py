"""Settings of `prepare`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from raygan.data.registry import FILTERS
from raygan.models.registry import DEFAULT_FEATURES, FEATURE_NETWORKS
from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, NameOrAddress, OneOf, Settings, option

#: By default, a photo is enlarged at most by this factor: enlarged more, it teaches a GAN to be blurry.
MOST_ENLARGED = 2

#: Photos with a shorter side in px show too little of an animal, whatever the size of the shards' images.
LEAST_SIDE = 32


class FilterChoice(Settings):
    """Which filters are in use."""

    group: ClassVar[str] = "filters"

    skip: list[Annotated[str, OneOf(FILTERS)]] = option(None, "filters to turn off", default_factory=list)


class Limits(Settings):
    """Limits of the filters that judge each photo on its own."""

    group: ClassVar[str] = "filters"

    min_side: int | None = option(
        None,
        "too_small: minimum length of the shorter side (of the face, with --crop-faces); by default half of "
        "--image-size, so that no photo is enlarged more than twice, and at least 32",
        unit="px",
        ge=1,
    )
    max_megapixels: float = option(
        50.0, "too_large: maximum size; larger photos are never decoded", unit="megapixels", gt=0
    )
    max_megabytes: float = option(200.0, "too_large: maximum file size; larger files are never read", unit="MB", gt=0)
    max_aspect: float = option(3.0, "bad_aspect: maximum ratio of the longer side to the shorter", ge=1)
    min_contrast: float = option(
        4.0, "flat: minimum standard deviation of gray levels", unit="levels of 256", ge=0, le=127
    )
    min_sharpness: float = option(
        0.1, "blurry: minimum sharpness, measured in a 64 px view; photos in focus have 0.3 or more", ge=0, le=3
    )


class FilterOptions(Limits, FilterChoice):
    """All settings of the filters."""

    group: ClassVar[str] = "filters"

    hash_distance: int = option(
        6,
        "near_duplicate: maximum number of differing bits between near-duplicates' perceptual hashes",
        unit="bits of 64",
        ge=0,
        le=15,
    )
    outlier_deviations: float = option(
        3.0,
        "outlier: maximum distance to the nearest photos of the label, in robust standard deviations (of logarithms) "
        "above the median",
        gt=0,
        le=20,
    )
    outlier_network: NameOrAddress = option(DEFAULT_FEATURES, f"outlier: feature network: {FEATURE_NETWORKS}")


class ReadOptions(Settings):
    """How shards are read while a training runs."""

    group: ClassVar[str] = "cluster"

    data_memory: float | None = option(
        None,
        "maximum memory for photos in Ray's object store; where they don't all fit, half of it is for shards being "
        "shuffled, half for shards being read; by default enough for 64 shards each",
        unit="GB",
        gt=0,
    )


class PrepareSettings(FilterOptions, StorageSettings):
    """All settings of `jobs/prepare.py`."""

    group: ClassVar[str] = "photos and shards"
    resumes: ClassVar[bool] = True

    input: list[Address] = option(
        ..., "photos: folders, archives (.zip, .tar, .tar.gz), globs, Parquet files or URIs (s3://, gs://)"
    )
    output: Address = option(..., "folder or URI to write the shards to")
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    label: str | None = option(None, "label of every photo; by default, --layout says where labels come from")
    layout: Literal["auto", "folders", "names", "columns"] = option(
        "auto",
        "where labels come from: class folders, file names such as cat.1.jpg, Parquet columns, or (auto) a guess, "
        "which also looks into tables (.csv, .tsv, .jsonl) and is printed with its reason",
    )
    image_column: str | None = option(None, "Parquet column of encoded photos; guessed by default")
    label_column: str | None = option(
        None, "column of labels in Parquet files or tables (.csv, .tsv, .jsonl); guessed by default"
    )
    fit: Literal["crop", "pad"] = option("crop", "crop to the center square, or pad to a square with black")
    crop_faces: bool = option(
        False, "crop each photo to its face, and reject photos without one; needs pip install 'raygan[faces]'"
    )
    detector: Address | None = option(
        None,
        "face detector for --crop-faces: an OpenCV cascade (.xml) or an ONNX export of a YOLO detector (.onnx); by "
        "default OpenCV's cascade for cats; dogs need a detector of their own",
    )
    validation: float = option(0.05, "share of photos held out from training, chosen by content hash", ge=0, le=0.5)
    encoding: Literal["raw", "png"] = option(
        "raw", "store photos in the shards as plain pixels (fast) or as PNG files (about half the size)"
    )
    shard_images: int | None = option(
        None, "maximum images per shard; by default 1024, or fewer if those exceed 32 MB", unit="images", ge=1
    )
    chunk_images: int = option(
        512, "maximum images per task; a killed job repeats no more than this per running task", unit="images", ge=1
    )
    more_later: bool = option(
        False,
        "keep each photo's results in OUTPUT/.prepare (as large as the shards); once the input has grown, the same "
        "command with --overwrite examines only the new photos (all of a tar or Parquet file that has changed)",
    )
    overwrite: bool = option(False, "replace a different data set in the output folder")
    dry_run: bool = option(False, "judge the photos and report, but write nothing")

    @model_validator(mode="before")
    @classmethod
    def _enlarge_little(cls, values: dict[str, Any]) -> dict[str, Any]:
        size = values.get("image_size", cls.model_fields["image_size"].default)
        if values.get("min_side") is None:
            with suppress(TypeError, ValueError, OverflowError):  # the field's own check says what is wrong with it
                values = {**values, "min_side": max(int(float(size)) // MOST_ENLARGED, LEAST_SIDE)}
        return values
