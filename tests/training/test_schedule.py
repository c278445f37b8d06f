"""When events are due, by images and by the clock, and learning rates."""

import math
from itertools import pairwise

import pytest
import torch

from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings
from raygan.settings import validate
from raygan.training.schedule import Agenda, Schedule, learning_rate_share, rates_after
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep


def of(photos=1000, batch_size=10, **changes):
    settings = validate(TrainSettings, {"data": "x", "epochs": 8, "batch_size": batch_size, **changes})
    return Schedule.of(settings, photos, batch_size)


def images_of(schedule):
    """The intervals between logs, snapshots, checkpoints and measurements."""
    return tuple(
        every and every.images for every in (schedule.log, schedule.snapshot, schedule.checkpoint, schedule.quality)
    )


def test_by_default_events_divide_the_run_evenly():
    schedule = of(quality_samples=100)
    assert (schedule.total, *images_of(schedule)) == (8000, 80, 400, 400, 800)


def test_kimg_counts_instead_of_epochs():
    assert of(kimg=2.5).total == 2500


def test_cadences_in_kimg_fall_on_logs_and_measurements_on_checkpoints():
    schedule = of(log_every=0.07, checkpoint_every=0.2, snapshot_every=0.01, quality_every=0.5)
    # 200 images between checkpoints, to the nearest whole number of logs; 500 to that of checkpoints.
    assert images_of(schedule) == (70, 70, 210, 420)


def test_short_runs_are_not_measured_longer_than_trained():
    assert of(quality_samples=300).quality.images == 1200  # of 8000


def test_a_tiny_run_without_measurements():
    schedule = of(photos=25, epochs=1, quality_every=0)
    assert (schedule.total, *images_of(schedule)) == (20, 10, 10, 10, None)


def events(schedule, batch_size, seconds_per_batch, images=0, minutes=0.0, costs=None, measurable_from=0.0):
    """(images, minutes) of each kind of event of a run at a steady pace, which looks at the clock at every batch.

    costs: seconds that each kind of event holds the training up; by default none.
    measurable_from: minutes after which the reference is there.
    """
    agenda = Agenda(schedule, images, minutes)
    found = {"log": [], "snapshot": [], "checkpoint": [], "quality": []}
    paid = dict.fromkeys(found, 0.0)
    while True:
        images, minutes = images + batch_size, minutes + seconds_per_batch / 60
        agenda.learn(paid, measurable=minutes >= measurable_from)
        due = agenda.due(images, minutes)
        for kind, moments in found.items():
            if getattr(due, kind):
                moments.append((images, round(minutes, 6)))
                paid[kind] = (costs or {}).get(kind, 0.0) / 60
                minutes += paid[kind]
        if due.last:
            return found


def test_a_run_of_given_length_is_clocked_by_images_alone():
    schedule = of(quality_samples=100)
    fast, slow = (events(schedule, 10, seconds) for seconds in (1e-6, 0.01))
    for kind, interval in (("log", 80), ("snapshot", 400), ("checkpoint", 400), ("quality", 800)):
        assert [images for images, _ in fast[kind]] == list(range(interval, 8001, interval))
        assert [images for images, _ in slow[kind]] == list(range(interval, 8001, interval))


def test_a_run_by_the_clock_divides_its_minutes():
    """Twenty minutes at 170 images/s of a preset of a million images show twenty grids, not four."""
    schedule = of(photos=2000, batch_size=32, kimg=1000, minutes=20)
    found = events(schedule, 32, 32 / 170)
    assert found["log"][-1] == pytest.approx((204_000, 20.0), rel=1e-3)
    assert 95 <= len(found["log"]) <= 130
    for kind, least, most in (("snapshot", 20, 24), ("checkpoint", 20, 24), ("quality", 10, 12)):
        assert least <= len(found[kind]) <= most
        moments = [0.0, *(minutes for _, minutes in found[kind])]
        assert max(later - earlier for earlier, later in pairwise(moments)) < 20 / least + 0.01


def test_a_slow_run_is_not_measured_longer_than_trained_by_the_clock_either():
    found = events(of(photos=2000, batch_size=32, kimg=1000, minutes=20), 32, 32 / 2)  # 2 images/s: 2400 in all
    assert [images for images, _ in found["quality"]] == [2016, 2400]  # 500 samples need 2000 images


#: Seconds that a picture, a checkpoint and a measurement of 500 samples take of two cores, and of cores as fast as ten.
COSTS = {"log": 0.1, "snapshot": 0.5, "checkpoint": 0.4, "quality": 5.0}


@pytest.mark.parametrize("minutes", [4, 20, 60])
@pytest.mark.parametrize("pace", [30, 490, 5000])
def test_a_run_by_the_clock_spends_a_twentieth_of_it_on_events(minutes, pace):
    """At 490 images/s, a run of four minutes spent a third of it on pictures and measurements."""
    schedule = of(photos=2000, batch_size=100, kimg=1000, minutes=minutes)
    found = events(schedule, 100, 100 / pace, costs=COSTS)
    minutes = found["log"][-1][1]  # the fastest reach a million images before
    counts = {kind: len(moments) for kind, moments in found.items()}
    # But for the last of each kind, which make the result.
    assert sum((counts[kind] - 1) * cost for kind, cost in COSTS.items()) <= 0.06 * 60 * minutes
    assert min(counts.values()) >= 1
    assert counts["snapshot"] >= min(16, minutes)


def test_a_given_interval_is_kept_whatever_it_costs():
    given = {f"{kind}_every": 0.96 for kind in COSTS}
    found = events(of(photos=2000, batch_size=32, kimg=100, minutes=4, **given), 32, 32 / 490, costs=COSTS)
    for moments in found.values():
        assert [images for images, _ in moments[:-1]] == [960 * (1 + number) for number in range(len(moments) - 1)]


def test_a_checkpoint_that_takes_long_comes_at_least_every_so_many_minutes():
    schedule = of(photos=2000, batch_size=32, kimg=100_000, minutes=60, checkpoint_minutes=5, quality_every=0)
    found = events(schedule, 32, 32 / 490, costs={"checkpoint": 30.0})
    moments = [0.0, *(minutes for _, minutes in found["checkpoint"])]
    assert max(later - earlier for earlier, later in pairwise(moments)) < 5.6


def test_a_run_by_the_clock_does_not_wait_for_the_reference():
    schedule = of(photos=2000, batch_size=32, kimg=100_000, minutes=10)
    found = events(schedule, 32, 32 / 490, measurable_from=4.5)
    assert found["quality"][0][1] == pytest.approx(4.5, abs=0.01)
    assert [minutes for _, minutes in events(schedule, 32, 32 / 490, measurable_from=99)["quality"]] == pytest.approx(
        [10], abs=0.01
    )


def test_a_run_of_given_length_waits_for_the_reference():
    """Searches compare trials at the same numbers of images."""
    found = events(of(quality_samples=100), 10, 1.0, measurable_from=math.inf)
    assert [images for images, _ in found["quality"]] == list(range(800, 8001, 800))


def test_a_long_slow_run_loses_no_more_than_ten_minutes():
    schedule = of(photos=2000, batch_size=32, kimg=1000)
    found = events(schedule, 32, 32 / 2, images=900_000, minutes=7500.0)  # a checkpoint takes 7 hours by images
    moments = [7500.0, *(minutes for _, minutes in found["checkpoint"])]
    assert max(later - earlier for earlier, later in pairwise(moments)) < 10.5


def test_the_clock_is_images_whatever_the_batch_size():
    """Resumed with batches of 64 at an odd number of images, everything still comes at every so many images."""
    schedule = of(photos=2000, batch_size=64, kimg=64, quality_every=0)
    found = events(schedule, 64, 1e-6, images=8 * 1001)
    assert [images // 3200 for images, _ in found["checkpoint"]] == list(range(3, 21))
    assert found["log"][-1][0] - schedule.total < 64


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


def test_later_rates_come_into_force_at_their_images():
    changes = ["40:0.001:0.0002", "80:0.0008:0.0001"]
    found = [rates_after(changes, images) for images in (0, 39_999, 40_000, 79_999, 80_000, 10**9)]
    assert found == [None, None, (1e-3, 2e-4), (1e-3, 2e-4), (8e-4, 1e-4), (8e-4, 1e-4)]
    networks = NetworkSettings(image_size=32, z_dim=8, width=4)
    step = GanStep(
        networks, StepOptions(batch_size=2, generator_lr=5e-4, critic_lr=3e-4, rate_changes=["0.002:0.1:0.2"])
    )
    reals = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for expected in ((5e-4, 3e-4), (0.1, 0.2)):
        step.step(reals)
        optimizers = step.generator_optimizer, step.critic_optimizer
        assert tuple(each.param_groups[0]["lr"] for each in optimizers) == expected


@pytest.mark.parametrize("given", ["40", "40:0.1", "a:0.1:0.1", "40:0:0.1", "-1:0.1:0.1"])
def test_impossible_changes_of_rates_are_refused(given):
    with pytest.raises(ConfigurationError, match="--rate-changes"):
        validate(TrainSettings, {"data": "x", "rate_changes": [given]})
