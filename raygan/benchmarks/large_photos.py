"""Phone-sized photos made from small ones, and how decoding them at a smaller scale changes the kept pixels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from raygan.data.kinds import is_image_name
from raygan.data.shards import DataSet, read_shard
from raygan.errors import ConfigurationError
from raygan.machine import cores

#: Standard deviation of the grain, in levels of 256: without it, enlarged photos would have small files.
_GRAIN = 6.0


def enlarge(inputs: list[str], folder: Path, count: int, megapixels: float) -> None:
    """Write JPEGs of a given size, 4:3 and with a camera's grain, into the class folders of a folder.

    Args:
        inputs: folders of photos in class folders.
        folder: where the JPEGs go.
        count: how many of the photos to enlarge, evenly spread.
        megapixels: of each JPEG.

    Raises:
        ConfigurationError: there are too few photos.
    """
    found = [path for root in inputs for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)]
    if len(found) < count:
        raise ConfigurationError(f"--large-photos: {count} is more than the {len(found)} photos in {', '.join(inputs)}")
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    grain = np.random.default_rng(0).normal(0, _GRAIN, (height, width, 1)).round().astype(np.int16)

    def write(number: int) -> None:
        source = found[number * len(found) // count]
        with Image.open(source) as photo:
            large = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(large) + np.roll(grain, 997 * number)  # another grain in each photo
        target = folder / source.parent.name / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 1 + 5 * (number % 2)  # every other one was taken with the camera held upright
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=90, exif=exif)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))


def difference(shards: str, folder: Path) -> float:
    """Mean difference, in levels of 256, of the shards' pixels from those of photos that Pillow decodes whole.

    Args:
        shards: that `prepare` made of the photos.
        folder: of the photos.
    """
    data = DataSet.open(shards)
    found = []
    for shard in data.manifest.shards:
        pixels, _ = read_shard(shards, data.manifest, shard)
        paths = pq.read_table(os.path.join(shards, shard.file), columns=["path"])["path"].to_pylist()
        for kept, path in zip(pixels.transpose(0, 2, 3, 1), paths, strict=True):
            with Image.open(os.path.join(folder, path)) as photo:
                whole = ImageOps.exif_transpose(photo).convert("RGB")
            size = data.manifest.image_size, data.manifest.image_size
            square = np.asarray(ImageOps.fit(whole, size, Image.Resampling.BICUBIC))
            found.append(np.abs(square.astype(np.int16) - kept).mean())
    return float(np.mean(found))
