"""The keys of photos in chunks: what a photo's results depend on."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raygan.data.chunks import keys_of
from raygan.data.listing import SCHEMA
from raygan.data.prepare import configuration_of, pixel_settings_of
from raygan.data.settings import PrepareSettings
from raygan.data.sources import Source

PHOTO = {"source": 0, "path": b"1.jpg", "row": -1, "size": 9, "changed": 9, "label": "cat"}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("net.xml", {"skip": ["outlier"], "crop_faces": True, "detector": "{}/net.xml"}),
        ("classifier.safetensors", {"outlier_network": "{}"}),
        ("weights.pth", {"outlier_network": "inception_v3:{}/weights.pth"}),
    ],
)
def test_another_network_at_the_same_path_is_another_network(tmp_path, file, changes):
    """Photos that the first has examined are examined again, and the shards made with it are others."""
    named = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    keys, configurations = [], []
    for content in ("first", "second", "first"):
        (tmp_path / file).write_text(content)
        settings = PrepareSettings(input=["x"], output="y", **named)
        pixel_settings = pixel_settings_of(settings)
        photos = pa.Table.from_pylist([PHOTO], SCHEMA)
        keys.append(int(keys_of(photos, [Source("x", "/x")], pixel_settings)[0]))
        configurations.append(configuration_of(settings, pixel_settings))
    assert keys[0] == keys[2] != keys[1]
    assert configurations[0] == configurations[2] != configurations[1]


def test_networks_by_name_have_no_files_to_tell():
    settings = PrepareSettings(input=["x"], output="y")
    assert pixel_settings_of(settings).network_digest == ""
