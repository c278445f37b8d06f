"""Epochs and thousands of images in batches, and learning rates."""

import pytest

from raygan.errors import ConfigurationError
from raygan.settings import validate
from raygan.training.schedule import Schedule, learning_rate_share
from raygan.training.settings import TrainSettings


def of(photos=1000, batch_size=10, **changes):
    settings = validate(TrainSettings, {"data": "x", "epochs": 8, "batch_size": batch_size, **changes})
    return Schedule.of(settings, photos, batch_size)


def test_by_default_events_divide_the_run_evenly():
    schedule = of(quality_samples=100)
    assert (schedule.total, schedule.log, schedule.snapshot, schedule.checkpoint, schedule.quality) == (
        800, 8, 40, 40, 80,
    )  # fmt: skip


def test_kimg_counts_instead_of_epochs():
    assert of(kimg=2.5).total == 250


def test_cadences_in_kimg_fall_on_logs_and_measurements_on_checkpoints():
    schedule = of(log_every=0.07, checkpoint_every=0.2, snapshot_every=0.01, quality_every=0.5)
    assert schedule.log == 7
    assert schedule.snapshot == 7
    assert schedule.checkpoint == 21  # 20 batches, to the nearest whole number of logs
    assert schedule.quality == 42  # 50 batches, to the nearest whole number of checkpoints


def test_short_runs_are_not_measured_longer_than_trained():
    assert of(quality_samples=300).quality == 120  # 1200 images, of 8000


def test_a_tiny_run_without_measurements():
    schedule = of(photos=25, epochs=1, quality_every=0)
    assert (schedule.total, schedule.log, schedule.checkpoint, schedule.quality) == (2, 1, 1, 0)


@pytest.mark.parametrize(("given", "workers"), [("3", (3, 3)), (2, (2, 2)), ("1:8", (1, 8)), ([2, 4], (2, 4))])
def test_workers_may_be_a_range(given, workers):
    settings = validate(TrainSettings, {"data": "x", "num_workers": given})
    assert (settings.fewest_workers, settings.most_workers) == workers
    assert validate(TrainSettings, settings.plain()) == settings


@pytest.mark.parametrize("given", ["0", "8:1", "many", "1:2:3", True, "0:4"])
def test_impossible_numbers_of_workers_are_refused(given):
    with pytest.raises(ConfigurationError, match="--num-workers"):
        validate(TrainSettings, {"data": "x", "num_workers": given})


def test_learning_rates_rise_and_fall():
    settings = validate(TrainSettings, {"data": "x", "batch_size": 6, "warmup_kimg": 0.06, "decay": 0.5})
    shares = [learning_rate_share(settings, images, 0.24) for images in (0, 30, 54, 60, 120, 180, 240)]
    assert shares == pytest.approx([0.1, 0.6, 1.0, 1.0, 1.0, 0.5, 0.0])
    constant = validate(TrainSettings, {"data": "x"})
    assert learning_rate_share(constant, 10**9, 0.24) == 1.0
