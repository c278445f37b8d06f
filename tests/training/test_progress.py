"""The driver's progress: what it shows, records and passes on."""

import math
from types import SimpleNamespace

import pytest

from raygan.training.events import Collapse, Picture, Quality, Report, Tick, Unmeasured
from raygan.training.history import History
from raygan.training.progress import MeasuringStuckError, Progress
from raygan.training.reports import measurement
from raygan.training.schedule import Every, Schedule


@pytest.fixture
def logged():
    """What MLflow is given: pictures by path, metrics by images."""
    return {}


@pytest.fixture
def history(tmp_path):
    return History(str(tmp_path / "metrics.jsonl"))


@pytest.fixture
def progress(tmp_path, history, logged):
    def make(minutes=math.inf, told=None, patience_s=math.inf):
        log = SimpleNamespace(
            log_bytes=lambda content, path: logged.update({path: content}),
            log_metrics=lambda metrics, images: logged.update({images: metrics}),
            log_tags=logged.update,
        )
        each = Every(8)
        schedule = Schedule(total=80, log=each, snapshot=each, checkpoint=each, quality=each, minutes=minutes)
        return Progress(schedule, str(tmp_path), history, log, told, patience_s)

    return make


def report(images, minutes=1.0):
    return Report({"images": images, "minutes": minutes, "images_per_second": 0.1, "critic_loss": 1.5})


def test_a_picture_that_cannot_be_read_does_not_end_a_training(tmp_path, progress, logged, capsys):
    (tmp_path / "there.png").write_bytes(b"picture")
    with progress(told=lambda quality: None) as follower:
        for event in (Picture("gone.png"), Picture("there.png"), Picture("gone.png")):
            follower.handle(event)
    assert logged == {"there.png": b"picture"}
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: can't copy gone.png to MLflow: ")


def test_reports_and_measurements_are_shown_and_kept(tmp_path, progress, logged, capsys):
    with progress() as follower:
        follower.handle(Tick(16))
        follower.handle(report(24))
        follower.handle(Quality({"kid16_net": 3.0, "kid16_net_error": 0.1}, 16, 3.0, "somewhere"))
        follower.handle(report(32))
        follower.handle(Collapse("critic_loss is nan", 0.04))
    assert follower.images == 32
    assert follower.collapse.reason == "critic_loss is nan"
    assert [record["images"] for record in History(str(tmp_path / "metrics.jsonl")).records] == [24, 16, 32]
    assert logged == {16: {"kid16_net": 3.0, "kid16_net_error": 0.1}}
    shown = capsys.readouterr().err
    assert "32.0/80.0" in shown
    assert "critic_loss=1.5, kid=3 at 0 kimg" in shown


def test_a_crowd_that_takes_the_cores_for_a_minute_is_told_of_once(progress, capsys):
    def told(*shares, **given):
        with progress(**given) as follower:
            for number, share in enumerate(shares, start=1):
                event = report(8 * number, minutes=number / 2)
                follower.handle(Report({**event.metrics, "without_core": share}))
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    assert told(0.1, 0.2) == []
    assert told(0.5, 0.5, 0.1, 0.5, 0.5) == []  # the start, or a measurement
    (line,) = told(0.1, 0.5, 0.5, 0.48, 0.5, 0.1, 0.5, 0.5, 0.5)
    assert "48%" in line
    assert "--cpus-per-worker" in line
    assert told(0.5, 0.5, 0.5, told=lambda quality: None) == []


def test_measurements_that_fail_or_never_come_are_shown_and_recorded(progress, logged, capsys):
    def measured_report(images):
        return Report(report(images).metrics, measured=True)

    with progress() as follower:
        follower.handle(measured_report(8))
        follower.handle(Quality({"kid16_net": 3.0}, 8, 3.0, "somewhere"))
        follower.handle(Unmeasured(16, "no space left"))
        assert logged["unmeasured"] == "quality at 0.016 kimg is not measured: no space left"
        follower.handle(measured_report(24))
        follower.catch_up(SimpleNamespace(best_checkpoints=[]))
    assert logged["unmeasured"].endswith("quality at 0.024 kimg is not measured: its task ended without a result")
    with progress(patience_s=0.0) as follower:
        follower.handle(measured_report(32))
        follower.look()  # while the training goes on
        assert "at 0.032 kimg is not measured: its task did not end in time" in logged["unmeasured"]
        follower.handle(measured_report(40))
        follower.handle(measured_report(80))  # the end: no more than one patience is waited
        with pytest.raises(MeasuringStuckError):
            follower.look()
        follower.look()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 5


def test_what_a_finished_training_still_waits_for_is_said_once(progress, monkeypatch, capsys):
    monkeypatch.setattr("raygan.training.progress._MEASURING_S", 0.0)
    with progress() as follower:
        follower.handle(Report(report(24).metrics, measured=True))
        follower.look()  # the training goes on
        assert "measured" not in capsys.readouterr().err
        follower.handle(Report(report(80).metrics, measured=True))
        follower.look()
        follower.look()
        follower.handle(Quality({"kid16_net": 3.0}, 24, 3.0, "somewhere"))
        follower.handle(Quality({"kid16_net": 3.0}, 80, 3.0, "somewhere"))
    assert capsys.readouterr().err.count("the training is done; its last checkpoint is still being measured") == 1


def test_a_run_by_the_clock_shows_what_its_minutes_are_expected_to_bring(progress, capsys):
    with progress(minutes=5.0) as follower:
        follower.handle(report(24, minutes=1.0))  # four more minutes at 0.1 images/s
    assert "24.0/48.0" in capsys.readouterr().err


def test_a_measurement_that_an_earlier_driver_missed_is_made_up_for(tmp_path, progress, history, logged):
    told = []
    history.add({"kid16_net": 3.0, "images": 16})
    kept = [
        (SimpleNamespace(path=f"{tmp_path}/checkpoint_{images}"), {"images": images, **measurement(metrics, 3.0)})
        for images, metrics in ((16, {"kid16_net": 3.0}), (32, {"kid16_net": 2.0}))
    ]
    with progress(told=told.append) as follower:
        follower.catch_up(SimpleNamespace(best_checkpoints=kept))
    assert logged == {32: {"kid16_net": 2.0}}
    assert [(quality.images, quality.checkpoint) for quality in told] == [(32, f"{tmp_path}/checkpoint_32")]
