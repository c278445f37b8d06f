"""The model store: proven versions."""

from __future__ import annotations

from dataclasses import replace

from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.model_store import ModelStore
from raygan.serve.settings import ServeSettings
from tests.serve.local import CAT, CLASSIFIER, DOG


def test_versions_that_were_served_are_remembered(monkeypatch):
    answers = [Champions({"cat": CAT, "dog": DOG}, CLASSIFIER)]
    monkeypatch.setattr("raygan.tracking.connect", lambda settings: None)
    monkeypatch.setattr("raygan.tracking.serving_generators", lambda client: answers[-1].generators)
    monkeypatch.setattr("raygan.tracking.serving_classifier", lambda client: answers[-1].classifier)
    store = ModelStore(ServeSettings(storage="x", tracking_uri=None))
    assert store.champions().proven == Champions()
    store.confirm(Champions({"cat": CAT}, CLASSIFIER))
    store.confirm(Champions({"dog": DOG}, None))  # from a gateway that started while the others failed to load
    assert store.champions() == replace(answers[0], proven=answers[0])
    answers.append(Champions({"cat": ModelVersion(CAT.name, "2")}, None))
    assert store.champions() == replace(answers[1], proven=Champions({"cat": CAT}, None))
