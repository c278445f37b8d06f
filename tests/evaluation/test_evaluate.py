"""The report card: its metrics' order from good to bad, its files, its cache and its refusals."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raygan import tracking
from raygan.data.synthetic import draw_face
from raygan.errors import ConfigurationError, RayganError
from raygan.evaluation.candidates import Noise, RealPhotos, untrained_generator
from raygan.evaluation.collect import Look, network_digest
from raygan.evaluation.evaluate import evaluate, find_judges, measure
from raygan.evaluation.settings import EvaluateSettings
from raygan.evaluation.verdict import Reals
from raygan.models.features import load_features
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.runtime.settings import StorageSettings
from raygan.sampling.generators import NamedGenerator, find_generators

NETWORK = NetworkSettings(image_size=32, z_dim=4, width=2)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_worse_images_come_out_worse_on_every_metric(one_thread):
    """Drawn faces, blurred ones as a poor generator makes them, an untrained generator's images, and noise."""
    faces = torch.stack([torch.from_numpy(np.array(draw_face("cat", seed, 64))).permute(2, 0, 1) for seed in range(80)])
    compared, others = faces[:40], faces[40:]
    generator = build_generator(NetworkSettings(image_size=64, z_dim=8, width=4))
    like = NamedGenerator("any", generator, ("cat",), {})
    sets = {
        "real": RealPhotos({"cat": others}).sample("cat", 40, 0),
        "poor": torch.nn.functional.avg_pool2d(others.float(), 3, 1, 1).to(torch.uint8),
        "untrained": untrained_generator(like, ["cat"], seed=0).sample("cat", 40, 0),
        "noise": Noise(64).sample("cat", 40, 0),
    }
    features = load_features("efficientnet_lite0")
    reals = Reals(compared, {"efficientnet_lite0": features(compared)})
    found = {}
    for name, pixels in sets.items():
        look = Look(pixels, {"efficientnet_lite0": features(pixels)}, None, None)
        found[name], closest = measure(look, reals, "cat", ())
        assert closest.shape == (40,)
    for metric, sign in {
        "fid": 1,
        "kid": 1,
        "train_distance": 1,
        "precision": -1,
        "recall": -1,
        "coverage": -1,
    }.items():
        values = [sign * found[name][f"{metric}40_efficientnet_lite0"] for name in sets]
        assert values == sorted(values), (metric, values)
        assert values[0] < values[-1]


@pytest.mark.usefixtures("ray_cluster")
def test_a_report_is_one_page_a_record_and_a_run(settings_of, generators, classifier):
    settings = settings_of(
        model=generators,
        classifier=classifier,
        network=["efficientnet_lite0", "googlenet"],
        baselines=True,
        name="first",
    )
    result = evaluate(settings)
    assert set(result.metrics) == {"real photos", "cat", "dog", "untrained", "noise"}
    assert set(result.metrics["real photos"]) == {"cat", "dog", "all"}
    assert set(result.metrics["cat"]) == {"cat"}
    found = result.metrics["cat"]["cat"]
    expected = {
        f"{m}12_{n}"
        for m in ("fid", "kid", "precision", "recall", "density", "coverage", "diversity", "copies", "train_distance")
        for n in ("efficientnet_lite0", "googlenet_judge")
    }
    assert expected | {"agreement12", "confidence12", "animal_mass12", "kid12_googlenet_judge_error"} <= set(found)
    assert np.isfinite(list(found.values())).all()
    with open(os.path.join(result.folder, "report.html"), encoding="utf-8") as file:
        page = file.read()
    assert "untrained" in page
    assert "biased upwards" in page
    assert "the classifier learnt from generated images" in page
    outside = [link for link in re.findall(r'(?:src|href)="([^"]{,30})', page) if not link.startswith("data:")]
    assert not outside
    with open(os.path.join(result.folder, "report.json"), encoding="utf-8") as file:
        assert json.load(file)["metrics"] == result.metrics
    client = tracking.connect(settings)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cat/cat/fid12_efficientnet_lite0"] == pytest.approx(found["fid12_efficientnet_lite0"])
    assert {a.path for a in client.list_artifacts(result.run_id)} == {"report.html", "report.json"}
    # The features of the reals wait for the next report, which comes to the same numbers.
    kept = sorted(os.listdir(os.path.join(settings.storage, "features")))
    assert len(kept) == 4
    assert kept[0].startswith("0-20-cat-30-")
    assert network_digest("efficientnet_lite0") in kept[0]
    again = evaluate(settings.model_copy(update={"name": "second"}))
    assert again.metrics == result.metrics


def served(storage, label, *, labels=()):
    """Register a generator as the champion of its label, or of all of its labels."""
    torch.manual_seed(0)
    settings = StorageSettings(storage=str(storage), tracking_uri=None)
    with tempfile.TemporaryDirectory() as scratch, tracking.start_run(settings, label, job="train", params={}) as run:
        folder = Path(scratch, "generator")
        save_generator(folder, build_generator(replace(NETWORK, labels=labels)), {"label": label})
        tracking.register_generator(run, folder, label, labels=list(labels or (label,)), promote=True)
    return settings


def test_a_champion_of_several_labels_is_found_once_and_draws_what_no_other_is_champion_of(new_storage):
    settings = served(new_storage, "all", labels=("cat", "dog"))
    (both,) = find_generators(settings, [], ["cat", "dog"])
    assert both.labels == ("cat", "dog")
    served(new_storage, "cat")
    found = {one.labels: one.name for one in find_generators(settings, [], ["cat", "dog"])}
    assert found == {("dog",): "raygan-generator-all/1", ("cat",): "raygan-generator-cat/1"}


def test_no_two_generators_have_the_same_name(new_storage, tmp_path):
    settings = StorageSettings(storage=str(new_storage), tracking_uri=None)
    folders = [str(tmp_path / run / "last") for run in ("a", "b")]
    for folder in folders:
        save_generator(Path(folder), build_generator(NETWORK), {"label": "cat"})
    assert [one.name for one in find_generators(settings, folders[:1], [])] == ["last"]
    assert [one.name for one in find_generators(settings, folders, [])] == folders
    with pytest.raises(ConfigurationError, match="is given twice"):
        find_generators(settings, [folders[0], folders[0]], [])


@pytest.mark.usefixtures("ray_cluster")
def test_a_generator_of_one_label_is_judged_beside_one_of_all(settings_of, generators, tmp_path):
    save_generator(tmp_path / "a+b", build_generator(NETWORK), {"label": "all"})
    settings = settings_of(model=[generators[0], str(tmp_path / "a+b")])
    result = evaluate(settings)
    assert {name: set(of) for name, of in result.metrics.items()} == {"cat": {"cat"}, "a+b": {"all"}}
    recorded = tracking.connect(settings).get_run(result.run_id).data.metrics
    name = "kid12_efficientnet_lite0"
    assert recorded[f"a_b/all/{name}"] == pytest.approx(result.metrics["a+b"]["all"][name])


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no generator draws cat"),
        ({"label": ["fox"]}, "has no label 'fox'"),
        ({"model": ["nobody"]}, "neither a folder"),
        ({"model": "generators", "samples": 3}, "3 are too few"),
        ({"model": "generators", "network": ["googlenet"]}, "no classifier is registered"),
        ({"model": "generators", "network": ["resnet"]}, "no feature network"),
        ({"model": "generators", "classifier": "/nowhere"}, "classifier.json is missing"),
        ({"model": "generators", "network": ["inception_v3"], "inception_weights": "/nowhere.pth"}, "Inception"),
    ],
)
def test_what_cannot_be_judged_is_said_and_nothing_is_written(settings_of, generators, changes, says):
    changes = {k: generators if v == "generators" else v for k, v in changes.items()}
    settings = settings_of(**changes)
    with pytest.raises(RayganError, match=says) as raised:
        evaluate(settings)
    assert "\n" not in str(raised.value)
    assert not os.path.exists(os.path.join(settings.storage, "reports"))


def test_features_that_are_not_numbers_are_said():
    reals = Reals(torch.empty(9, 0), {"efficientnet_lite0": torch.randn(9, 8)})
    broken = torch.randn(9, 8)
    broken[3] = float("nan")
    with pytest.raises(RayganError, match="1 of 9 generated images are not finite"):
        measure(Look(torch.empty(9, 0), {"efficientnet_lite0": broken}, None, None), reals, "cat", ())


def test_only_inceptions_metrics_go_without_a_network(one_thread, monkeypatch):
    class Network:
        name = "inception_v3"

    monkeypatch.setattr("raygan.evaluation.evaluate.load_features", lambda name: Network)
    reals = Reals(torch.empty(9, 0), {"inception_v3:weights.pth": torch.randn(9, 8)})
    look = Look(torch.empty(9, 0), {"inception_v3:weights.pth": torch.randn(9, 8)}, None, None)
    assert {"fid9", "kid9", "kid9_error", "precision9"} <= set(measure(look, reals, "cat", ())[0])


def test_inception_without_a_network_is_said(settings_of, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
    with pytest.raises(ConfigurationError, match=r"can't be downloaded .*no route to host"):
        find_judges(settings_of(data="shards", network=["inception_v3"]))
