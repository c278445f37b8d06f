"""One training of the study, without a cluster."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from raygan.classifier import loop
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.usefulness import trial
from raygan.classifier.usefulness.sets import TrialImages
from raygan.data.photos import InMemory, Photos


@pytest.mark.parametrize("most", [4, 100])
def test_a_result_names_the_photos_that_were_validated(tmp_path, monkeypatch, most):
    monkeypatch.setattr(loop, "MOST_VALIDATED", most)
    monkeypatch.setattr(trial.ray.tune, "report", lambda result: None)
    monkeypatch.setattr(trial.capacity, "use_own_cores", lambda: None)
    random = np.random.default_rng(0)
    blocks = tuple((random.integers(0, 256, (5, 32, 32, 3), np.uint8), np.arange(5) % 2) for _ in range(3))
    everything = Photos((5, 5, 5), InMemory(blocks))
    unseen = np.array([1, 2, 6, 7, 8, 11, 12, 14])
    images = TrialImages(
        real=everything.only(np.arange(0, 15, 3)),
        generated=0,
        generators=[],
        labels=["cat", "dog"],
        seed=0,
        validation=everything.only(unseen),
        numbers=unseen,
    )
    events = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=lambda event: None)))
    settings = UsefulnessSettings.model_validate({"data": "shards", "storage": str(tmp_path), "batch_size": 4})
    task = trial.SharedTask(settings, photos=15, labels=2, length=4, events=events, folder=str(tmp_path))
    trial.run_trial({"number": 0}, task, [(trial.Trial(5, 0, 1.0, 0), images)])
    (written,) = tmp_path.glob("trials/*.json")
    result = json.loads(written.read_text())
    validated = [number for number, character in enumerate(result["right"]) if character != "-"]
    assert set(validated) <= set(unseen.tolist())
    assert len(validated) == min(most, 8)
    assert result["right"].count("1") / len(validated) == pytest.approx(result["accuracy"])
