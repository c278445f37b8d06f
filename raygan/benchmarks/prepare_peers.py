"""What `prepare` is compared with: a plain Pillow loop, and torchvision's loader."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from tqdm import tqdm

from raygan.benchmarks.processes import output_of
from raygan.data import duplicates
from raygan.data.kinds import is_image_name
from raygan.data.listing import Listing
from raygan.data.neighbors import words_of
from raygan.data.settings import PrepareSettings
from raygan.data.shards import write_shard
from raygan.errors import ConfigurationError
from raygan.machine import cores

#: Photos in a shard of the loop, as many as `prepare` writes at 64 px.
_SHARD = 1024


def pillow_loop(settings: PrepareSettings) -> None:
    """What people write by hand: one process, one photo after another, the shards at the end."""
    paths = [path for root in settings.input for path in sorted(Path(root).rglob("*")) if is_image_name(path.name)]
    hashes: set[str] = set()
    phashes: list[imagehash.ImageHash] = []
    kept, about = [], []
    for path in tqdm(paths, desc="Pillow loop", unit=" images"):
        try:
            with Image.open(path) as image:
                if not _fits(image, settings):
                    continue
                photo = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError):
            continue
        square = ImageOps.fit(photo, (settings.image_size, settings.image_size), Image.Resampling.BICUBIC)
        if not _has_content(square, settings):
            continue
        digest = hashlib.sha256(photo.tobytes()).hexdigest()
        if digest in hashes:
            continue
        hashes.add(digest)
        phashes.append(imagehash.phash(photo))
        kept.append(np.asarray(square))
        about.append({"label": path.parent.name, "path": str(path), "hash": digest})
    near = np.stack([np.packbits(value.hash) for value in phashes])
    repeats, _ = duplicates.near_repeats(words_of(near), settings.hash_distance)
    chosen = np.flatnonzero(repeats < 0)
    for number, part in enumerate(np.array_split(chosen, -(-len(chosen) // _SHARD))):
        rows = pa.Table.from_pylist([about[i] for i in part])
        write_shard(settings.output, f"{number:05d}.parquet", np.stack([kept[i] for i in part]), rows, "train", "raw")


def class_folders(listing: Listing, root: str) -> str:
    """Link the photos into a folder per label, as torchvision's ImageFolder wants them, and return the parent."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    photos = listing.photos.to_pylist()
    for number, photo in enumerate(photos):
        if Path(os.fsdecode(photo["path"])).suffix.lower() not in IMG_EXTENSIONS:
            raise ConfigurationError(
                f"--input: torchvision's loader skips {os.fsdecode(photo['path'])}: give photos that end in "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        source = listing.sources[photo["source"]]
        folder = Path(root, photo["label"])
        folder.mkdir(parents=True, exist_ok=True)
        path = os.path.join(source.root, os.fsdecode(photo["path"]))
        (folder / f"{number}{Path(path).suffix}").symlink_to(path)
    return root


def torchvision(root: str, size: int) -> float:
    """Seconds in a process of its own; a fork of this one would inherit Ray's threads."""
    code = "import sys; from raygan.benchmarks.prepare_peers import load_all; load_all(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, root, str(size)]
    return float(output_of("torchvision's loader failed, as it does on any unreadable photo", command))


def load_all(root: str, size: int) -> None:
    """Read an ImageFolder once and print the seconds from the listing to the last batch."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(size, bicubic), transforms.CenterCrop(size), transforms.PILToTensor()]
    start = time.perf_counter()
    photos = ImageFolder(root, transforms.Compose(steps))
    for _ in DataLoader(photos, batch_size=256, num_workers=cores()):
        pass
    print(time.perf_counter() - start)


def _fits(image: Image.Image, settings: PrepareSettings) -> bool:
    short, long = sorted(image.size)
    return (
        image.width * image.height <= settings.max_megapixels * 1e6
        and short >= (settings.min_side or 1)
        and long / short <= settings.max_aspect
    )


def _has_content(square: Image.Image, settings: PrepareSettings) -> bool:
    grey = np.asarray(square.convert("L").resize((64, 64)), np.float32)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return bool(grey.std() >= settings.min_contrast and laplacian.std() / grey.std() >= settings.min_sharpness)
