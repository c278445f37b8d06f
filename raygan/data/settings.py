"""Settings of preparing photos."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.runtime.settings import StorageSettings
from raygan.settings import Address, ImageSize, NameOrAddress, Settings, option


class FilterOptions(Settings):
    """What a photo must be to be kept."""

    group: ClassVar[str] = "filters"

    skip: list[
        Literal["too_small", "too_large", "bad_aspect", "flat", "blurry", "duplicate", "near_duplicate", "outlier"]
    ] = option(None, "filters to switch off", default_factory=list)
    min_side: int = option(32, "too_small: shortest short side", unit="px", ge=1)
    max_megapixels: float = option(
        50.0, "too_large: most pixels; a photo with more is never decoded", unit="megapixels", gt=0
    )
    max_megabytes: float = option(200.0, "too_large: biggest file; a bigger one is never read", unit="MB", gt=0)
    max_aspect: float = option(3.0, "bad_aspect: largest long side over short side", ge=1)
    min_contrast: float = option(
        4.0, "flat: smallest standard deviation of grey levels", unit="levels of 256", ge=0, le=127
    )
    min_sharpness: float = option(
        0.1, "blurry: least fine detail in a 64 px view; photos in focus have 0.3 or more", ge=0, le=3
    )
    hash_distance: int = option(
        6,
        "near_duplicate: most bits of 64 in which the perceptual hashes of two pictures differ",
        unit="bits",
        ge=0,
        le=15,
    )
    outlier_deviations: float = option(
        3.0, "outlier: robust standard deviations above the median of its label's scores", gt=0, le=20
    )
    outlier_network: NameOrAddress = option(
        "efficientnet_lite0",
        "outlier: feature network: efficientnet_lite0, googlenet (the registered classifier), a classifier's folder, "
        "or a file of GoogLeNet weights (.pth or .safetensors)",
    )


class PrepareSettings(FilterOptions, StorageSettings):
    """Everything `jobs/prepare.py` can be told."""

    group: ClassVar[str] = "photos and shards"
    resumes: ClassVar[bool] = True

    input: list[Address] = option(..., "folders, globs, Parquet files or URIs (s3://, gs://) of photos")
    output: Address = option(..., "folder or URI that the shards are written to")
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    label: str | None = option(None, "label of every photo; by default labels are found from folders and names")
    layout: Literal["auto", "folders", "names", "columns"] = option(
        "auto", "where labels are: class folders, file names such as cat.1.jpg, Parquet columns, or found out"
    )
    image_column: str | None = option(None, "Parquet column of encoded photos; by default found out")
    label_column: str | None = option(None, "Parquet column of labels; by default found out")
    fit: Literal["crop", "pad"] = option("crop", "cut the centre square out, or keep all and pad with black")
    crop_faces: bool = option(False, "cut faces out of whole photos with the detector; photos without one are rejected")
    detector: str | None = option(
        None, "face detector: an OpenCV cascade (.xml) or an ONNX export of a YOLO detector (.onnx)"
    )
    validation: float = option(0.05, "share of photos that training never sees, chosen by content hash", ge=0, le=0.5)
    encoding: Literal["raw", "png"] = option(
        "raw", "shards hold plain pixels (fast) or PNG files (about half the size)"
    )
    shard_images: int | None = option(
        None, "most images in a shard; by default 1024, or fewer if those are over 32 MB", unit="images", ge=1
    )
    chunk_images: int = option(
        512, "images that one task reads, and that a killed job reads again at most, per task", unit="images", ge=1
    )
    overwrite: bool = option(False, "replace another data set that the output holds")
    dry_run: bool = option(False, "judge the photos and report, writing nothing")
