"""A run's record: what may be resumed, and with which settings."""

import pytest

from raygan.errors import ConfigurationError, RayganError
from raygan.runtime.runs import RunRecord
from raygan.training.settings import TrainSettings
from raygan.training.train import MAY_CHANGE


@pytest.fixture
def opened(tmp_path):
    """A function that opens the run "one"; keyword arguments change its settings."""

    def open_run(images=100, minutes=None, fingerprint="f", name="one", **changes):
        settings = TrainSettings.model_validate(
            {"data": "x", "storage": str(tmp_path), "tracking_uri": None, **changes}
        )
        return RunRecord.open(
            settings,
            name,
            fingerprint,
            may_change=MAY_CHANGE,
            allow_changes=settings.allow_changes,
            images=images,
            minutes=minutes,
        )

    return open_run


def test_changed_settings_are_refused_unless_allowed(opened):
    opened().save(state="running")
    assert opened(max_failures=9).resumed
    for change in ({"z_dim": 9}, {"sync_batch_norm": True}, {"quality_network": "googlenet"}):
        with pytest.raises(ConfigurationError, match=f"started with other settings .*{next(iter(change))} was"):
            opened(**change)
    with pytest.raises(ConfigurationError, match="the shards have changed"):
        opened(fingerprint="g")
    assert opened(z_dim=9, allow_changes=True).resumed


def test_of_two_jobs_that_begin_a_run_at_once_one_is_refused(opened):
    """Reading the photos takes a while between a run's opening and its record."""
    first, second = opened(), opened()
    first.save(state="running")
    with pytest.raises(RayganError, match="another job has just begun one"):
        second.save(state="running")
    first.save(state="finished")


def test_another_number_of_workers_is_reported(opened, capsys):
    opened().save(state="running")
    opened()
    assert "may differ" not in capsys.readouterr().out
    opened(num_workers=2)
    assert "it had --num-workers 1 before: its numbers may differ" in capsys.readouterr().out


def test_a_finished_run_is_resumed_only_for_more_images_or_minutes(opened):
    opened(images=100).save(state="finished", images=100, minutes=20.01)
    with pytest.raises(ConfigurationError, match="is finished"):
        opened(images=100)
    with pytest.raises(ConfigurationError, match="is finished"):
        opened(images=1000, minutes=20)  # the same command again
    assert opened(images=1000).resumed
    assert opened(images=1000, minutes=60).resumed


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "x" * 121, "кот"])
def test_a_name_that_is_not_one_folder_or_that_ray_does_not_take_is_refused(opened, name):
    with pytest.raises(ConfigurationError, match="--name"):
        opened(name=name)
