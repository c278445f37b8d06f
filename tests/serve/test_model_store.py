"""The model store: proven versions, and MLflow outages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from raygan import tracking
from raygan.errors import RayganError
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.model_store import ModelStore
from raygan.serve.settings import ServeSettings
from tests.serve.local import CAT, CLASSIFIER, DOG, make_generator, save


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


@pytest.fixture
def store(new_storage, tmp_path):
    """A model store with one registered generator, in version 1."""
    settings = ServeSettings(storage=str(new_storage), tracking_uri=None)
    save(tmp_path / "cat", make_generator())
    with tracking.start_run(settings, "trained", job="test", params={}) as run:
        tracking.register_generator(run, tmp_path / "cat", "cat", labels=["cat"], promote=True)
    return ModelStore(settings)


def test_a_version_that_kills_replicas_is_handed_out_no_more(store):
    for _ in range(3):
        assert set(store.files(CAT)) == {"generator.json", "generator.safetensors"}
    with pytest.raises(RayganError, match=r"raygan-generator-cat version 1: 3 attempts to load it have not ended"):
        store.files(CAT)
    store.finish(CAT)  # one of them was only slow
    for _ in range(5):
        store.files(CAT)


def test_a_load_that_was_not_tried_does_not_count(store):
    for _ in range(5):
        store.files(CAT)
        store.finish(CAT, False)
    for _ in range(3):
        store.files(CAT)
    with pytest.raises(RayganError, match="3 attempts"):
        store.files(CAT)


def test_a_slow_download_does_not_hold_up_other_versions_and_is_made_once(monkeypatch):
    begun, go_on, downloaded = threading.Event(), threading.Event(), []

    def download(client, model, folder, **_):
        downloaded.append(model.name)
        if model.name == CAT.name:
            begun.set()
            go_on.wait(240)
        (folder / "generator.json").write_text(model.name)
        return folder

    monkeypatch.setattr("raygan.tracking.connect", lambda settings: None)
    monkeypatch.setattr("raygan.tracking.download_model", download)
    store = ModelStore(ServeSettings(storage="x", tracking_uri=None))
    with ThreadPoolExecutor(3) as threads:
        slow = [threads.submit(store.files, CAT) for _ in range(2)]
        begun.wait(240)
        assert threads.submit(store.files, DOG).result(240) == {"generator.json": DOG.name.encode()}
        assert not any(each.done() for each in slow)
        go_on.set()
        assert [each.result(240) for each in slow] == [{"generator.json": CAT.name.encode()}] * 2
    assert sorted(downloaded) == sorted([CAT.name, DOG.name])


def test_a_huge_version_is_refused_before_its_download(store, monkeypatch):
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", None)
    small = ModelStore(ServeSettings(**{**store.settings.plain(), "max_model_megabytes": 0.001}))
    with pytest.raises(RayganError, match=r"cannot download .* MB; the limit is 0.001 MB"):
        small.files(CAT)


def test_the_last_answer_of_the_registry_stands_while_mlflow_is_down(new_storage, monkeypatch):
    def refuse(client):
        raise RayganError("MLflow's registry does not answer")

    store = ModelStore(ServeSettings(storage=str(new_storage), tracking_uri=None))
    before = store.champions()
    monkeypatch.setattr("raygan.tracking.serving_generators", refuse)
    assert store.champions() == before
    with pytest.raises(RayganError, match="registry does not answer"):
        ModelStore(ServeSettings(storage=str(new_storage), tracking_uri=None)).champions()
