"""A worker's loop with a clock that stands still but for what its work takes, and nobody to report to."""

import math
import tempfile
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.train import ReportedCheckpointStatus

from raygan.data.batches import BatchStream
from raygan.data.photos import InMemory, Photos
from raygan.models.distributed import Share
from raygan.settings import validate
from raygan.training import worker
from raygan.training.build import new_step
from raygan.training.events import Picture
from raygan.training.schedule import Schedule
from raygan.training.settings import TrainSettings
from raygan.training.worker import TrainLoop, WorkerTask

#: Seconds that each takes.
STEP, SCORES, PICTURE, CHECKPOINT, MEASUREMENT = 1.0, 0.05, 3.0, 2.0, 12.0


class Clock:
    seconds = 0.0

    def takes(self, seconds, answer=None):
        """A stand-in for work that takes so long."""

        def work(*arguments):
            self.seconds += seconds
            return answer

        return work


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Runs a training of ten minutes by the clock; returns what happened, and how many minutes it took.

    ready_after_s: seconds after which the reference is there.
    cores: what a measurement beside the worker reserves.
    free_cores: of the cluster.
    status: Ray Train's of the measurement before.
    on_gpu: steps return at once, and what they have queued takes its time until one waits for it.
    changes: to the settings.
    """

    def run(ready_after_s=0.0, on_gpu=False, cores=0.0, free_cores=0.0, status="VALIDATED", **changes):
        clock, told, reports = Clock(), [], []
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of checkpoints, which Ray would delete
        monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
        monkeypatch.setattr(worker.Snapshots, "png", clock.takes(PICTURE, b"picture"))
        monkeypatch.setattr(worker, "save_training", clock.takes(CHECKPOINT))
        monkeypatch.setattr(worker, "mean_scores", clock.takes(SCORES, {}))
        monkeypatch.setattr(worker.ray.train, "report", lambda metrics, **given: reports.append((metrics, given)))
        monkeypatch.setattr(worker.ray.train, "get_preemption_info", lambda: None)

        class Monitor:
            def __init__(self):
                self.measured = []

            @property
            def ready(self):
                return clock.seconds >= ready_after_s

            def try_to_measure(self, generator, images):
                self.measured.append(clock.seconds)
                clock.seconds += MEASUREMENT

        settings = validate(
            TrainSettings,
            {"data": "x", "image_size": 32, "z_dim": 8, "width": 4, "batch_size": 2, "kimg": 100, "minutes": 10}
            | {"quality_samples": 16, "n_critic": 1}
            | changes,
        )
        random = np.random.default_rng(0)
        block = (random.integers(0, 256, (8, 32, 32, 3), np.uint8), np.zeros(8, np.int64))
        photos, schedule = Photos((8,), InMemory((block,))), Schedule.of(settings, 8, 2)
        step, monitor = new_step(settings, schedule), Monitor()

        queued = []

        def work_off(device):
            clock.seconds += sum(queued)
            queued.clear()

        def trained(reals, classes):
            queued.append(STEP)
            if not on_gpu:
                work_off(step.device)
            step.images_seen += len(reals)
            return {"critic_loss": torch.tensor(1.0)}

        monkeypatch.setattr(step, "step", trained)
        if on_gpu:
            monkeypatch.setattr(step, "device", SimpleNamespace(type="cuda"))
            monkeypatch.setattr(worker, "on_device", lambda batches, device: batches)
            monkeypatch.setattr(worker.torch.cuda, "synchronize", work_off)
            monkeypatch.setattr(worker.Snapshots, "samples", lambda self, count: torch.rand(count, 3, 32, 32))
        events = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=told.append)))
        monkeypatch.setattr(worker.capacity, "free_cores", lambda: free_cores)
        reported = [SimpleNamespace(status=ReportedCheckpointStatus[status])]
        monkeypatch.setattr(worker.ray.train, "get_all_reported_checkpoints", lambda *how: reported)
        measuring = {"monitor": monitor, "monitor_cores": cores}
        task = WorkerTask(settings, schedule, photos, photos, "f", (), ("cat",), events, str(tmp_path), **measuring)
        TrainLoop(task, step, BatchStream(photos, 2, 0, Share()), {}).run()
        pictures = sum(isinstance(event, Picture) for event in told)
        checkpoints = sum("checkpoint" in given for _, given in reports)
        return SimpleNamespace(
            minutes=clock.seconds / 60,
            measured=monitor.measured,
            beside=sum(given.get("validation", False) for _, given in reports),
            pictures=pictures,
            checkpoints=checkpoints,
            steps=step.batches,
            logs=[metrics for metrics, _ in reports],
        )

    return run


def test_a_run_by_the_clock_spends_its_minutes_on_steps(train):
    found = train()
    # All of the twenty pictures and checkpoints, and the ten measurements, would have taken nearly four minutes.
    assert found.minutes == pytest.approx(10, abs=0.6)
    assert found.steps * STEP >= 0.9 * 60 * found.minutes
    assert 3 <= found.pictures <= 6
    assert 2 <= len(found.measured) <= 3
    assert found.checkpoints >= 3


def test_a_run_by_the_clock_goes_on_until_the_reference_is_there(train):
    first, *_ = train(ready_after_s=400.0).measured
    assert 400 <= first <= 420


@pytest.mark.parametrize(
    ("free_cores", "ready_after_s", "status", "in_worker"),
    [
        (1.5, 0.0, "VALIDATED", False),
        (1.0, 0.0, "VALIDATED", True),  # another job has taken the cores
        (1.0, 0.0, "PENDING_VALIDATION", False),  # the training's own measurement has: they come in order
        (1.0, math.inf, "VALIDATED", False),  # it waits for the reference anyway, and the training must not
    ],
)
def test_a_measurement_doesnt_wait_for_cores_of_other_jobs(train, free_cores, ready_after_s, status, in_worker):
    measuring = {"cores": 1.5, "free_cores": free_cores, "status": status}
    found = train(ready_after_s, **measuring, minutes=None, kimg=1, quality_every=0.2)
    counts = (5, 0) if in_worker else (0, 5)
    assert (len(found.measured), found.beside) == counts


def test_the_rate_counts_the_pauses_between_two_logs_once(train):
    logs = train().logs
    assert len(logs) > 20
    for before, after in pairwise(logs):
        seconds = 60 * (after["minutes"] - before["minutes"])
        assert seconds * after["images_per_second"] == pytest.approx(after["images"] - before["images"])


def test_the_rate_on_a_gpu_is_that_of_finished_steps(train):
    logs = train(on_gpu=True, minutes=None, kimg=0.2, log_every=0.02, quality_every=0).logs
    assert len(logs) == 10
    for metrics in logs:
        assert 0 < metrics["images_per_second"] <= 2 / STEP


def test_a_run_by_the_clock_ends_on_time_however_rarely_it_logs(train):
    found = train(log_every=50, snapshot_every=50, checkpoint_every=50, quality_every=0)
    assert found.minutes == pytest.approx(10, abs=0.3)
    assert len(found.logs) == 1
