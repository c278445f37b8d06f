"""A run's record: what may be resumed, with what, and what is said about it."""

import pytest

from raygan.errors import ConfigurationError
from raygan.runtime.runs import RunRecord
from raygan.training.settings import TrainSettings
from raygan.training.train import MAY_CHANGE


@pytest.fixture
def opened(tmp_path):
    """A function that opens the run "one" with settings that differ from the defaults by keyword."""

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


def test_what_changes_the_run_is_refused_unless_it_is_allowed(opened):
    opened().save(state="running")
    assert opened(max_failures=9).resumed
    for change in ({"z_dim": 9}, {"sync_batch_norm": True}, {"quality_network": "googlenet"}):
        with pytest.raises(ConfigurationError, match=f"begun differently .{next(iter(change))} was"):
            opened(**change)
    with pytest.raises(ConfigurationError, match="the shards have changed"):
        opened(fingerprint="g")
    assert opened(z_dim=9, allow_changes=True).resumed


def test_other_workers_are_said(opened, capsys):
    opened().save(state="running")
    opened()
    assert "may differ" not in capsys.readouterr().out
    opened(num_workers=2)
    assert "it had --num-workers 1 before: its numbers may differ" in capsys.readouterr().out


def test_a_finished_run_goes_on_only_if_it_is_to_see_or_take_more(opened):
    opened(images=100).save(state="finished", images=100, minutes=20.01)
    with pytest.raises(ConfigurationError, match="is finished"):
        opened(images=100)
    with pytest.raises(ConfigurationError, match="is finished"):
        opened(images=1000, minutes=20)  # the same command again
    assert opened(images=1000).resumed
    assert opened(images=1000, minutes=60).resumed


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "x" * 121])
def test_names_that_are_no_folder_of_their_own_are_refused(opened, name):
    with pytest.raises(ConfigurationError, match="--name"):
        opened(name=name)
