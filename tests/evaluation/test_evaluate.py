"""The report card: its files, its cache and its refusals."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raygan import tracking
from raygan.errors import ConfigurationError, RayganError
from raygan.evaluation.collect import find_networks, network_digest
from raygan.evaluation.evaluate import evaluate
from raygan.evaluation.settings import EvaluateSettings
from raygan.metrics.distances import LEAST
from raygan.metrics.registry import METRICS
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.runtime import room

NETWORK = NetworkSettings(image_size=32, z_dim=4, width=2)


@pytest.fixture
def generators(tmp_path):
    """Folders of two small generators, of cats and of dogs."""
    torch.manual_seed(0)
    for label in ("cat", "dog"):
        save_generator(tmp_path / label, build_generator(NETWORK), {"label": label})
    return [str(tmp_path / label) for label in ("cat", "dog")]


@pytest.fixture
def classifier(tmp_path):
    folder = tmp_path / "judge"
    save_classifier(folder, build_googlenet(2), labels=("cat", "dog"), image_size=32, about={"generated": 9})
    return str(folder)


@pytest.fixture
def settings_of(new_storage, write_shards):
    def make(**changes: object) -> EvaluateSettings:
        values = {"storage": str(new_storage), "tracking_uri": None, "samples": 12, **changes}
        if "data" not in values:
            values["data"] = str(write_shards())
        return EvaluateSettings.model_validate(values)

    return make


@pytest.mark.usefixtures("ray_cluster")
def test_a_report_is_one_page_a_record_and_a_run(settings_of, generators, classifier, monkeypatch, capsys):
    monkeypatch.setattr(room, "room", lambda address: 500_000)
    settings = settings_of(
        model=generators,
        classifier=classifier,
        network=["efficientnet_lite2", "googlenet"],
        baselines=True,
        name="first",
    )
    result = evaluate(settings)
    # Two labels of 30 photos each, in vectors of 1280 and 1024 numbers of four bytes.
    assert (
        "has room for 0.5 MB, and up to 0.6 MB will be written there (features of 60 photos)" in capsys.readouterr().err
    )
    assert set(result.metrics) == {"real photos", "cat", "dog", "untrained", "noise"}
    assert set(result.metrics["real photos"]) == {"cat", "dog", "all"}
    assert set(result.metrics["cat"]) == {"cat"}
    found = result.metrics["cat"]["cat"]
    networks = ("efficientnet_lite2", "googlenet_judge")
    expected = {f"{name}12_{network}" for name, metric in METRICS.items() if metric.compare for network in networks}
    assert len(expected) == 18
    errors = {f"kid12_{network}_error" for network in networks}
    assert set(found) == expected | errors | {"agreement12", "confidence12", "animal_mass12_efficientnet_lite2"}
    assert np.isfinite(list(found.values())).all()
    with open(os.path.join(result.folder, "report.html"), encoding="utf-8") as file:
        page = file.read()
    assert "biased upwards" in page
    assert "the classifier learned from generated images" in page
    # Under each network the table has a column for each candidate, and a third time without features.
    for candidate in result.metrics:
        assert page.count(f"<th>{candidate}</th>") == 3 * len(result.metrics[candidate])
    for network in networks:
        assert page.count(f'colspan="4">{network}</th>') == 2
    assert "efficientnet_lite2 decided nothing here" in page
    for name in METRICS.names():
        assert f"<dt>{name}</dt>" in page
    outside = [link for link in re.findall(r'(?:src|href)="([^"]{,30})', page) if not link.startswith("data:")]
    assert not outside
    with open(os.path.join(result.folder, "report.json"), encoding="utf-8") as file:
        assert json.load(file)["metrics"] == result.metrics
    client = tracking.connect(settings)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("shards", "0-20", "evaluation")
    assert run.data.metrics["cat/cat/fid12_efficientnet_lite2"] == pytest.approx(found["fid12_efficientnet_lite2"])
    assert {a.path for a in client.list_artifacts(result.run_id)} == {"report.html", "report.json"}
    # The features of the real photos are kept for the next report, which has the same numbers.
    kept = sorted(os.listdir(os.path.join(settings.storage, "features")))
    assert len(kept) == 4
    assert kept[0].startswith("0-20-cat-30-")
    assert network_digest("efficientnet_lite2") in kept[0]
    again = evaluate(settings.model_copy(update={"name": "second", "model": generators[:1]}))
    assert again.metrics == {name: {"cat": of["cat"]} for name, of in result.metrics.items() if "cat" in of}


@pytest.mark.usefixtures("ray_cluster")
def test_a_generator_of_one_label_is_evaluated_beside_one_of_all(settings_of, generators, tmp_path):
    save_generator(tmp_path / "a+b", build_generator(NETWORK), {"label": "all"})
    settings = settings_of(model=[generators[0], str(tmp_path / "a+b")])
    result = evaluate(settings)
    assert {name: set(of) for name, of in result.metrics.items()} == {"cat": {"cat"}, "a+b": {"all"}}
    recorded = tracking.connect(settings).get_run(result.run_id).data.metrics
    name = "kid12_efficientnet_lite0"
    # MLflow takes no "+": something with a digest stands for the candidate's name.
    (value,) = (value for key, value in recorded.items() if key.endswith(f"/all/{name}"))
    assert value == pytest.approx(result.metrics["a+b"]["all"][name])


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no generator draws cat"),
        ({"label": ["fox"]}, "has no label 'fox'; it has cat, dog"),
        ({"label": ["Cats"]}, "has no label 'Cats'; it spells it 'cat'"),
        ({"model": ["nobody"]}, "neither a folder"),
        ({"model": "generators", "network": ["googlenet"]}, "no classifier is registered"),
        ({"model": "generators", "network": ["resnet"]}, "not a feature network"),
        ({"model": "generators", "classifier": "/nowhere"}, "classifier.json is missing"),
        ({"model": "generators", "network": ["inception_v3"], "inception_weights": "/nowhere.pth"}, "Inception"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_nothing_is_written(settings_of, generators, changes, says):
    changes = {k: generators if v == "generators" else v for k, v in changes.items()}
    settings = settings_of(**changes)
    with pytest.raises(RayganError, match=says) as raised:
        evaluate(settings)
    assert "\n" not in str(raised.value)
    assert not os.path.exists(os.path.join(settings.storage, "reports"))


def test_as_many_samples_as_the_metrics_need(settings_of):
    assert settings_of(data="shards", samples=LEAST).samples == LEAST
    with pytest.raises(ValidationError, match=f"greater than or equal to {LEAST}"):
        settings_of(data="shards", samples=LEAST - 1)


def test_a_failed_download_of_inception_is_reported(settings_of, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
    with pytest.raises(ConfigurationError, match=r"can't be downloaded .*no route to host"):
        find_networks(settings_of(data="shards", network=["inception_v3"]))
