"""Reading shards while they are in use: once for all, within a bound, and again when a copy or a node is lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from raygan.benchmarks.reading import linked
from raygan.data.batches import BatchStream
from raygan.data.photos import open_photos
from raygan.data.reader import load_photos, shards_mixed
from raygan.data.shards import DataSet, Manifest, ShardFile, check_rows, read_shard, write_shard
from raygan.errors import ConfigurationError, RayganError
from raygan.models.distributed import Share
from tests.conftest import write_random_shard


def make(folder, shards: int, rows: int, size: int = 32) -> DataSet:
    """A data set of random photos, without validation."""
    folder.mkdir()
    random = np.random.default_rng(0)
    files = []
    for number in range(shards):
        counts = {"cat": rows // 2, "dog": rows // 2}
        write_random_shard(folder / f"train-{number:05d}.parquet", ["cat", "dog"] * (rows // 2), size, "train", random)
        files.append(ShardFile(file=f"train-{number:05d}.parquet", split="train", rows=counts))
    manifest = Manifest(image_size=size, classes=["cat", "dog"], shards=files, fingerprint="x", configuration={})
    manifest.write(str(folder))
    return DataSet.open(str(folder))


def batches(photos, count: int, world: int = 1, rank: int = 0, size: int = 16, start: int = 0) -> list[torch.Tensor]:
    stream = BatchStream(photos, size, 3, Share(rank, world)).starting_at(start)
    return [next(stream)[0].clone() for _ in range(count)]


@pytest.mark.usefixtures("ray_cluster")
def test_shards_within_the_bound_are_read_once_and_others_again(tmp_path):
    data = make(tmp_path / "shards", 8, 12)
    bound = 4 * 12 * 3 * 32**2 / 1e9  # two groups of two shards
    whole, bounded = load_photos(data, "train", None), load_photos(data, "train", None, bound)
    assert (whole.mixed, bounded.mixed) == (64, 2)
    for photos in (whole, bounded):
        batches(photos, 12)  # two epochs
    assert torch.equal(torch.cat(batches(bounded, 6)), torch.cat(batches(open_again(data, 2), 6)))
    for path in (tmp_path / "shards").glob("train-*"):
        path.unlink()
    batches(whole, 12)
    with pytest.raises(RayganError, match=r"shard .*train-0000\d.parquet was deleted or replaced") as raised:
        batches(bounded, 12)
    assert "\n" not in str(raised.value)


def open_again(data, mixed):
    """The photos without an object store."""
    photos = open_photos(data, "train", None)
    return type(photos)(photos.rows, photos.source, mixed)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("change", ["replaced", "truncated"])
def test_a_shard_that_changes_while_it_is_in_use_is_named(tmp_path, change):
    data = make(tmp_path / "shards", 8, 12)
    photos = load_photos(data, "train", "cat", 4 * 12 * 3 * 32**2 / 1e9)
    assert len(photos) == 48
    for number in range(8):
        shard = tmp_path / "shards" / f"train-{number:05d}.parquet"
        if change == "replaced":
            write_random_shard(shard, ["cat", "dog"] * 6, 32, "train", np.random.default_rng(1))
        else:
            shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(RayganError, match=r"shard .*train-0000\d.parquet was deleted or replaced"):
        batches(photos, 1)


def test_a_nodes_own_copy_of_the_shards_may_have_other_times(tmp_path):
    photos = open_photos(make(tmp_path / "shards", 2, 12), "train", None)
    shutil.copytree(tmp_path / "shards", tmp_path / "copy", copy_function=shutil.copyfile)
    on_node = replace(photos.source, address=str(tmp_path / "copy"))
    assert np.array_equal(on_node.read(0)[0], photos.source.read(0)[0])
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"x"', '"another"'))  # that of other shards
    with pytest.raises(RayganError, match="deleted or replaced"):
        on_node.read(0)
    manifest.write_text(manifest.read_text().replace('"another"', '"x"'))
    (tmp_path / "copy" / "train-00001.parquet").write_bytes(b"PAR1")
    assert len(on_node.read(0)[0]) == 12
    with pytest.raises(RayganError, match="deleted or replaced"):
        on_node.read(1)


def test_what_cannot_be_read_is_refused_before_anything_is(tmp_path):
    data = make(tmp_path / "shards", 4, 12)
    size = 12 * 3 * 32**2
    assert shards_mixed(data, 2.1 * size / 1e9) == 1
    assert shards_mixed(data, 4.1 * size / 1e9) == 64  # all of them fit
    with pytest.raises(ConfigurationError, match=r"--data-memory: .* less than two shards"):
        shards_mixed(data, 1.9 * size / 1e9)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    for change, says in (
        ({"file": "train-00001.parquet"}, "names train-00001.parquet twice"),
        ({"rows": {"fox": 12}}, "gives train-00000.parquet photos of 'fox'"),
        ({"rows": {"cat": -1}}, "gives train-00000.parquet -1 photos"),
    ):
        changed = {**manifest, "shards": [{**manifest["shards"][0], **change}, *manifest["shards"][1:]]}
        (tmp_path / "shards" / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(RayganError, match=says):
            DataSet.open(str(tmp_path / "shards"))
    changed = {**manifest, "shards": [{**manifest["shards"][0], "rows": {"cat": 7, "dog": 5}}, *manifest["shards"][1:]]}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(RayganError, match=r"train-00000.parquet has other photos than its manifest says"):
        open_photos(DataSet.open(data.address), "train", None)
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "shards" / "train-00002.parquet").unlink()
    with pytest.raises(RayganError, match=r"lacks 1 of its 4 train shards, the first of them train-00002.parquet"):
        open_photos(data, "train", None)


@pytest.mark.parametrize("damage", ["pixels", "size", "no image", "no label"])
def test_a_shard_that_is_not_what_the_manifest_says_is_named(tmp_path, damage):
    folder = tmp_path / "shards"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    about = pa.table({"label": ["cat"] * 3, "path": list("abc"), "hash": list("abc")})
    write_shard(str(folder), "a.parquet", pixels, about, "train", "png" if damage == "pixels" else "raw")
    manifest = Manifest(
        image_size=64 if damage == "size" else 32,
        encoding="png" if damage == "pixels" else "raw",
        classes=["cat"],
        shards=[ShardFile(file="a.parquet", split="train", rows={"cat": 3})],
        fingerprint="x",
        configuration={},
    )
    shard = folder / "a.parquet"
    if damage == "pixels":
        content = shard.read_bytes()
        shard.write_bytes(content.replace(b"IHDR", b"JHDR"))
    elif damage.startswith("no "):
        table = pq.read_table(shard)
        pq.write_table(table.drop_columns([damage.removeprefix("no ")]), shard)
    with pytest.raises(RayganError, match=r"shard .*a.parquet.*: prepare the shards again$"):
        read_shard(str(folder), manifest, manifest.shards[0])
    if damage == "no label":
        with pytest.raises(RayganError, match=r"shard .*a.parquet.*: prepare the shards again$"):
            check_rows(str(folder), manifest.shards[0])


def test_some_photos_stand_for_all_without_all_shards_being_read(tmp_path):
    data = make(tmp_path / "shards", 12, 6)
    photos = open_photos(data, "train", None)
    places = photos.spread(24, shards=4)
    assert len(places) == 24
    assert np.unique(places[:, 0]).tolist() == [0, 3, 7, 11]
    assert np.array_equal(photos.spread(1000), [(shard, row) for shard in range(12) for row in range(6)])
    whole = [read_shard(data.address, data.manifest, shard)[0] for shard in data.shards("train")]
    shuffled = np.random.default_rng(0).permutation(places)
    assert np.array_equal(photos.pixels(shuffled), [whole[shard][row] for shard, row in shuffled])


@pytest.mark.usefixtures("ray_cluster")
def test_the_reader_of_thousands_of_shards_begins_again_when_its_process_dies(tmp_path):
    data = linked(make(tmp_path / "few", 2, 2), 4000, tmp_path / "many")
    photos = load_photos(data, "train", None)
    (before,) = photos.source.fetch([1000])
    ray.kill(photos.source.reader, no_restart=False)
    after, other = photos.source.fetch([1000, 1001])
    assert np.array_equal(after[0], before[0])
    assert np.array_equal(other[0], open_photos(data, "train", None).source.read(1001)[0])
