"""Photos of a phone's size, and the measure of what decoding them at a smaller scale costs."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from raygan.benchmarks.large_photos import difference, enlarge
from raygan.data.shards import Manifest, ShardFile, write_shard
from raygan.errors import ConfigurationError
from tests.data.messy import picture


def test_photos_are_enlarged_and_the_difference_from_whole_ones_is_measured(tmp_path):
    for number in range(4):
        (tmp_path / "small" / "cat").mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "small" / "cat" / f"{number}.png")
    enlarge([str(tmp_path / "small")], tmp_path / "large", 3, megapixels=0.3)
    paths = sorted((tmp_path / "large" / "cat").iterdir())
    whole = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
    assert sorted(photo.size for photo in whole) == [(474, 632), (632, 474), (632, 474)]
    squares = np.stack([np.asarray(ImageOps.fit(photo, (32, 32), Image.Resampling.BICUBIC)) for photo in whole])
    names = [f"cat/{path.name}" for path in paths]
    about = pa.table({"label": ["cat"] * 3, "path": names, "hash": names})
    shards = tmp_path / "shards"
    write_shard(str(shards), "train-00000.parquet", squares // 2 * 2, about, "train", "raw")
    file = ShardFile(file="train-00000.parquet", split="train", rows={"cat": 3})
    manifest = Manifest(image_size=32, classes=["cat"], shards=[file], fingerprint="x", configuration={})
    manifest.write(str(shards))
    assert difference(str(shards), tmp_path / "large") == pytest.approx((squares % 2).mean())
    with pytest.raises(ConfigurationError, match="5 is more than the 4 photos"):
        enlarge([str(tmp_path / "small")], tmp_path / "more", 5, megapixels=0.3)
