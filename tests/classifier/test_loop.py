"""The classifier's training loop."""

from types import SimpleNamespace

import numpy as np
import pytest

from raygan.classifier.loop import ClassifierLoop
from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep
from raygan.data.photos import InMemory, Photos


def test_training_settles_when_the_learning_rate_has_fallen_below_half():
    step = ClassifierStep(2, ClassifierOptions(batch_size=4, warmup=0.2), total=400)
    nothing = Photos((), ())
    loop = ClassifierLoop(step, nothing, nothing, lambda images: None)
    settling = []
    for step.images_seen in range(0, 400, 4):
        if loop.is_settling:
            settling.append(step.images_seen)
    # The rate rises to 1 over 80 images and falls to 0 over 320.
    assert settling == list(range(244, 400, 4))


def test_a_loop_stops_for_images_or_time_and_tells_means_and_its_pace(monkeypatch):
    seconds = 0.0
    monkeypatch.setattr("raygan.classifier.loop.time", SimpleNamespace(monotonic=lambda: seconds))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    photos = Photos((10,), InMemory(((pixels, np.arange(10) % 2),)))
    step = ClassifierStep(2, ClassifierOptions(batch_size=2), total=12)
    take_step, told = step.step, []

    def slow_step(*batch):
        nonlocal seconds
        seconds += 6
        return take_step(*batch)

    monkeypatch.setattr(step, "step", slow_step)
    loop = ClassifierLoop(step, photos, photos, told.append)
    step.images_seen = 5  # a run of another batch size left it there
    loop.train_until(10, minutes=7 / 60)
    assert step.images_seen == told[-1] == 9
    seconds += 100  # writing a checkpoint is no training
    loop.train_until(10, minutes=7 / 60)
    assert step.images_seen == told[-1] == 11
    found = loop.means()
    assert set(found) == {"loss", "train_accuracy", "images_per_second"}
    assert 0 < found["loss"] < 20
    assert found["train_accuracy"] * 6 == pytest.approx(round(found["train_accuracy"] * 6))
    assert found["images_per_second"] == pytest.approx(2 / 6)
