"""What the driver does about Ray Train's controller."""

import threading

import pytest
import ray.exceptions
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from raygan.errors import RayganError
from raygan.runtime.runs import RunRecord
from raygan.training.trainer import check_snapshot, outlive_controllers


class Fit:
    """A training whose controller dies so many times."""

    def __init__(self, deaths, stops=None):
        self.deaths, self.stops, self.tries = deaths, stops, 0

    def __call__(self):
        self.tries += 1
        if self.stops:
            self.stops.set()
        if self.tries <= self.deaths:
            raise ray.exceptions.RayActorError
        return "ended"


def test_a_training_outlives_as_many_controllers_as_asked_for(capsys):
    fit = Fit(deaths=2)
    assert (outlive_controllers(fit, 2, threading.Event()), fit.tries) == ("ended", 3)
    assert capsys.readouterr().err.count("controller has died; resuming") == 2
    fit = Fit(deaths=3)
    with pytest.raises(ray.exceptions.RayActorError):
        outlive_controllers(fit, 2, threading.Event())
    assert fit.tries == 3


def test_a_controller_killed_by_ctrl_c_stays_dead(capsys):
    stopped = threading.Event()
    fit = Fit(deaths=1, stops=stopped)
    with pytest.raises(ray.exceptions.RayActorError):
        outlive_controllers(fit, 2, stopped)
    assert (fit.tries, capsys.readouterr().err) == (1, "")


def test_a_damaged_list_of_checkpoints_is_reported_with_the_way_out(tmp_path):
    run = RunRecord("r", str(tmp_path), {}, resumed=True)
    check_snapshot(run)
    snapshot = tmp_path / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    snapshot.write_text("{}")
    check_snapshot(run)
    snapshot.write_text("")
    with pytest.raises(RayganError, match=r"run r can't be resumed: .* is damaged.* --begin-from r and another --name"):
        check_snapshot(run)
