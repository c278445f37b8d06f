"""Samples in files: one image per seed, also after an interruption."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings, build_generator, load_generator, save_generator, to_uint8
from raygan.models.latents import latents_of
from raygan.runtime import cluster, room
from raygan.sampling.sample import sample
from raygan.sampling.settings import SampleSettings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    generator = build_generator(NetworkSettings(image_size=32, z_dim=8, width=4, labels=("cat", "dog"))).eval()
    save_generator(tmp_path / "generator", generator, {})
    return tmp_path / "generator"


def settings(new_storage, folder, output, **changes):
    values = {"label": "dog", "n": 23, "seed": 5, "chunk_images": 10, "truncation": 0.7, **changes}
    return SampleSettings(storage=str(new_storage), tracking_uri=None, model=str(folder), output=str(output), **values)


def expected(folder):
    generator, _ = load_generator(folder)
    with torch.no_grad():
        images = to_uint8(generator(0.7 * latents_of(range(5, 28), 8), torch.ones(23, dtype=torch.long)))
    return images.permute(0, 2, 3, 1).numpy()


def close(found, wanted):
    """Equal up to rounding, which depends on the batch size."""
    return np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_samples_are_the_images_of_their_seeds_and_a_killed_job_resumes(
    new_storage, folder, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "png"
    monkeypatch.setattr(room, "room", lambda address: 70_000)
    result = sample(settings(new_storage, folder, output))
    assert "has room for 0.1 MB, and up to 0.1 MB will be written there (23 samples" in capsys.readouterr().err
    assert json.loads(result.to_json())["n"] == 23
    files = sorted(output.glob("*.png"))
    assert [file.name for file in files] == [f"dog.{number:08d}.png" for number in range(23)]
    assert close(np.stack([np.asarray(Image.open(file)) for file in files]), expected(folder))
    # As if killed in the second chunk: its record and some of its files are missing.
    os.remove(output / "chunks" / "00001.json")
    for file in files[15:20]:
        file.unlink()
    untouched = files[0].stat().st_mtime_ns, files[22].stat().st_mtime_ns
    sample(settings(new_storage, folder, output))
    assert "has room" not in capsys.readouterr().err
    assert sorted(output.glob("*.png")) == files
    assert (files[0].stat().st_mtime_ns, files[22].stat().st_mtime_ns) == untouched
    with monkeypatch.context() as no_ray:
        no_ray.setattr(cluster, "connect", None)
        sample(settings(new_storage, folder, output))
    assert "23 samples are there already" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"other samples \(seed 5\)"):
        sample(settings(new_storage, folder, output, seed=6))
    other = build_generator(NetworkSettings(image_size=32, z_dim=8, width=4, labels=("cat", "dog"))).eval()
    save_generator(folder, other, {})
    with pytest.raises(ConfigurationError, match=r"other samples \(weights [0-9a-f]{16}\)"):
        sample(settings(new_storage, folder, output))


def test_parquet_files_hold_label_and_seed(new_storage, folder, tmp_path):
    sample(settings(new_storage, folder, tmp_path / "parquet", format="parquet"))
    files = sorted((tmp_path / "parquet").glob("*.parquet"))
    table = pa.concat_tables(pq.read_table(file) for file in files)
    rows = sorted(table.to_pylist(), key=lambda row: row["seed"])
    assert [row["seed"] for row in rows] == list(range(5, 28))
    assert {row["label"] for row in rows} == {"dog"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None, "label": None}, "--label or --model"),
        ({"model": None, "label": "bird"}, "no generator of bird"),
        ({"label": None}, "draws cat, dog: say which"),
        ({"label": "bird"}, "doesn't draw bird"),
        ({"model": "/nowhere/generator"}, "--model"),
    ],
)
def test_impossible_samples_are_refused(new_storage, folder, tmp_path, changes, says):
    wrong = settings(new_storage, folder, tmp_path / "out").model_copy(update=changes)
    with pytest.raises(ConfigurationError, match=says):
        sample(wrong)
    assert not (tmp_path / "out").exists()
