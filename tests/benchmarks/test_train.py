"""The benchmarks of training run through, on tiny ones, and their numbers belong together."""

import json

import pytest

from raygan.benchmarks import quality, scale, train
from raygan.config import QualityBenchmarkSettings, ScaleBenchmarkSettings, TrainBenchmarkSettings
from raygan.errors import ConfigurationError

TINY = {"preset": "quick", "image_size": 32, "width": 4, "z_dim": 8, "batch_size": 4, "label": "cat"}


def settings_of(kind, **changes):
    values = {name: value for name, value in TINY.items() if name in kind.model_fields}
    return kind.model_validate(values | changes)


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_under_ray_stands_beside_the_bare_loop(write_shards, tmp_path):
    found = train.benchmark(
        settings_of(
            TrainBenchmarkSettings,
            data=str(write_shards(per_label=8)),
            measure_kimg=0.12,
            rounds=1,
            workers=[1],
            json_file=str(tmp_path / "numbers.json"),
        )
    )
    rows = found["rows"]
    assert set(rows) == {train.BARE, "1 worker"}
    for row in rows.values():
        assert row["peak_megabytes"] > 100  # torch alone
        assert row["ratio"] == row["images_per_second"] / rows[train.BARE]["images_per_second"]
    assert rows["1 worker"]["to_one_worker"] == 1
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] == rows


@pytest.mark.usefixtures("ray_cluster")
def test_quality_trains_each_once_and_judges_it_at_equal_times(write_shards, new_storage, tmp_path, capsys):
    settings = settings_of(
        QualityBenchmarkSettings,
        data=str(write_shards(per_label=96)),
        storage=str(new_storage),
        presets=["quick"],
        minutes=0.05,
        points=2,
        every=0.05,
        samples=16,
        picture=str(tmp_path / "kid.png"),
    )
    first = quality.benchmark(settings)
    assert set(first["rows"]) == {"quick", quality.TEXTBOOK}
    for points in first["rows"].values():
        assert [point["minutes"] <= 0.5 for point in points] == [True, True]
        assert points[0]["kimg"] <= points[1]["kimg"]
    assert (tmp_path / "kid.png").read_bytes().startswith(b"\x89PNG")
    assert "training quick" in capsys.readouterr().err
    assert quality.benchmark(settings)["rows"] == first["rows"]
    assert "training quick" not in capsys.readouterr().err
    assert quality._name(settings.model_copy(update={"minutes": 1.0}), "quick") != quality._name(settings, "quick")


def test_numbers_of_workers_are_checked_before_work(write_shards):
    data = str(write_shards())
    for module, kind in ((train, TrainBenchmarkSettings), (scale, ScaleBenchmarkSettings)):
        with pytest.raises(ConfigurationError, match="--workers"):
            module.benchmark(settings_of(kind, data=data, workers=[]))


def test_a_file_of_numbers_without_a_folder_is_said_before_work():
    with pytest.raises(ValueError, match="json_file: there is no folder /nowhere"):
        settings_of(TrainBenchmarkSettings, data="shards", json_file="/nowhere/numbers.json")
