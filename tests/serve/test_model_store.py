"""The model store: proven versions, and MLflow outages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygan.errors import RayganError
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


def test_the_last_answer_of_the_registry_stands_while_mlflow_is_down(new_storage, monkeypatch):
    def refuse(client):
        raise RayganError("MLflow's registry does not answer")

    store = ModelStore(ServeSettings(storage=str(new_storage), tracking_uri=None))
    before = store.champions()
    monkeypatch.setattr("raygan.tracking.serving_generators", refuse)
    assert store.champions() == before
    with pytest.raises(RayganError, match="registry does not answer"):
        ModelStore(ServeSettings(storage=str(new_storage), tracking_uri=None)).champions()
