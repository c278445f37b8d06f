"""The benchmarks of training, run on tiny ones: their numbers agree with each other."""

import contextlib
import json

import pytest
import torch

from raygan.benchmarks import quality, scale, scale_model, train
from raygan.benchmarks.candidates import TEXTBOOK
from raygan.benchmarks.settings import QualityBenchmarkSettings, ScaleBenchmarkSettings, TrainBenchmarkSettings
from raygan.errors import ConfigurationError
from tests.conftest import takes_long

TINY = {"preset": "quick", "image_size": 32, "width": 4, "z_dim": 8, "batch_size": 4, "label": "cat"}


def settings_of(kind, **changes):
    values = {name: value for name, value in TINY.items() if name in kind.model_fields}
    return kind.model_validate(values | changes)


@takes_long
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


@takes_long
@pytest.mark.usefixtures("ray_cluster")
def test_quality_trains_each_once_and_judges_at_equal_times(write_shards, new_storage, tmp_path, capsys):
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
    assert set(first["rows"]) == {"quick", TEXTBOOK}
    for points in first["rows"].values():
        assert [point["minutes"] <= 0.5 for point in points] == [True, True]
        assert points[0]["kimg"] <= points[1]["kimg"]
    assert (tmp_path / "kid.png").read_bytes().startswith(b"\x89PNG")
    assert "training quick" in capsys.readouterr().err
    assert quality.benchmark(settings)["rows"] == first["rows"]
    assert "training quick" not in capsys.readouterr().err
    assert quality.run_name(settings.model_copy(update={"minutes": 1.0}), "quick") != quality.run_name(
        settings, "quick"
    )


def test_other_points_in_time_retrain_the_textbook_but_no_preset(write_shards):
    data = str(write_shards())
    four, eight = (settings_of(QualityBenchmarkSettings, data=data, points=points) for points in (4, 8))
    assert quality.run_name(four, TEXTBOOK) != quality.run_name(eight, TEXTBOOK)
    assert quality.run_name(four, "quick") == quality.run_name(eight, "quick")


def test_numbers_of_workers_are_checked_before_work(write_shards):
    data = str(write_shards())
    for module, kind in ((train, TrainBenchmarkSettings), (scale, ScaleBenchmarkSettings)):
        with pytest.raises(ConfigurationError, match="--workers"):
            module.benchmark(settings_of(kind, data=data, workers=[]))


@pytest.mark.parametrize(("gpus", "uses"), [(0, {False}), (1, set()), (2, {True})])
@pytest.mark.parametrize(("module", "kind"), [(train, TrainBenchmarkSettings), (scale, ScaleBenchmarkSettings)])
def test_no_ratio_compares_devices(write_shards, monkeypatch, module, kind, gpus, uses):
    """Too few GPUs for the largest number of workers are an error, as for a training."""
    used = []

    def measured(settings, *_):
        used.append(settings.gpu)
        return dict.fromkeys(("images_per_second", "around", "peak_megabytes", "growth_megabytes"), 1.0)

    for name in ("runtime.cluster", "tracking"):
        monkeypatch.setattr(f"raygan.{name}.connect", lambda *_: None)
    monkeypatch.setattr("raygan.runtime.cluster.nodes", lambda: [{"CPU": 2.0, "GPU": float(gpus)}])
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    monkeypatch.setattr(module, "cores", lambda: 2)
    for name in ("apart", "under_ray"):
        monkeypatch.setattr(module, name, measured)
    monkeypatch.setattr(scale, "measure_gloo", lambda: scale_model.Link(1e9, 1e-4))
    settings = settings_of(kind, data=str(write_shards()), measure_kimg=0.12, rounds=1, workers=[1, 2])
    refused = pytest.raises(ConfigurationError, match="--workers: 2 workers need a GPU each")
    with contextlib.nullcontext() if uses else refused:
        module.benchmark(settings)
    assert set(used) == uses


def test_the_bare_loop_uses_no_gpu_that_workers_do_not_get(write_shards, tmp_path, monkeypatch):
    class Devices(list):
        def __call__(self, settings, schedule, labels, device):
            self.append(device.type)
            raise InterruptedError

    devices = Devices()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train, "new_step", devices)
    monkeypatch.setattr(train, "keep_freed_memory", lambda: None)
    settings = settings_of(TrainBenchmarkSettings, data=str(write_shards()))
    base = train.shared_settings(settings, str(tmp_path)).model_copy(update={"gpu": False})
    with pytest.raises(InterruptedError):
        train.bare_loop(base, torch.get_num_threads())
    assert devices == ["cpu"]


def test_a_missing_folder_for_the_numbers_is_reported_before_work():
    with pytest.raises(ValueError, match="json_file: there is no folder /nowhere"):
        settings_of(TrainBenchmarkSettings, data="shards", json_file="/nowhere/numbers.json")
