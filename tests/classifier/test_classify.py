"""Whole classifications with Ray Train: what they leave behind, and what they refuse before any work."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.train
import torch

from raygan import tracking
from raygan.classifier.classify import classify
from raygan.classifier.worker import classify_worker
from raygan.errors import ConfigurationError, RayganError
from raygan.models.distributed import Share
from raygan.models.features import load_features
from raygan.models.googlenet import load_classifier
from tests.helpers import CORES, wait_for_cores

pytestmark = pytest.mark.usefixtures("ray_cluster")


def die_within_the_second_epoch(config):
    """Of three batches each, with a checkpoint after each."""
    report, reports = ray.train.report, []

    def die(*args, **kwargs):
        report(*args, **kwargs)
        reports.append(args)
        if len(reports) == 4:
            ray.train.get_all_reported_checkpoints()  # waits until the last one is in storage
            raise RuntimeError("a power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "report", die)
        classify_worker(config)


class InThisProcess:
    """Ray Train's stand-in for a run that has nothing left to train: it begins with the last checkpoint in storage."""

    def __init__(self, loop, *, train_loop_config, run_config, **_):
        self.loop, self.config = loop, train_loop_config
        self.run = f"{run_config.storage_path}/{run_config.name}", run_config.storage_filesystem

    def fit(self):
        result = ray.train.Result.from_path(*self.run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray.train, "get_checkpoint", lambda: result.checkpoint)
            patch.setattr(ray.train, "report", None)
            patch.setattr("raygan.classifier.worker.this_rank", lambda: (Share(), torch.device("cpu")))
            self.loop(self.config)
        return result


def count_in_batches(run, batches):
    """Make the last checkpoint of a run in storage one that an earlier version wrote."""
    path = max(run.glob("checkpoint_*/fit.json"))
    state = json.loads(path.read_text())
    del state["images"]
    path.write_text(json.dumps({**state, "batches": batches}))


def right_about(classifier, shard, rows):
    """How many of these rows of a shard the classifier is right about."""
    table = pq.read_table(shard).take(rows).to_pydict()
    pixels = np.stack([np.frombuffer(image, np.uint8).reshape(32, 32, 3) for image in table["image"]])
    found = classifier.probabilities(torch.from_numpy(pixels).permute(0, 3, 1, 2)).argmax(1).tolist()
    return sum(classifier.labels[number] == label for number, label in zip(found, table["label"], strict=True))


def test_a_classification_leaves_a_model_pictures_and_a_finished_run(
    classify_settings, write_shards, new_storage, tmp_path, monkeypatch
):
    data = write_shards(per_label=8, held_out=6)
    settings = classify_settings(name="whole", data=str(data), checkpoint_minutes=1e-6, max_failures=0)

    def refuse(*args, **kwargs):
        raise RayganError("the registry is away")

    with monkeypatch.context() as patch:
        patch.setattr("raygan.classifier.classify.classify_worker", die_within_the_second_epoch)
        with pytest.raises(RayganError, match="a power cut"):
            classify(settings)
    count_in_batches(new_storage / "runs" / "whole", 4)
    # It is resumed there with batches as large as an epoch, of which it has done more than there are, and at a rate
    # that spoils it. Interrupted again just before its end, it is resumed without training again.
    settings = settings.model_copy(update={"batch_size": 24, "learning_rate": 0.2, "allow_changes": True})
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "register_classifier", refuse)
        with pytest.raises(RayganError, match="registry is away"):
            classify(settings)
    with pytest.raises(ConfigurationError, match=r"seed was 0, now 1"):
        classify(settings.model_copy(update={"seed": 1, "allow_changes": False}))
    wait_for_cores()
    with monkeypatch.context() as patch:
        patch.setattr("raygan.classifier.classify.TorchTrainer", InThisProcess)
        result = classify(settings)
    client = tracking.connect(settings)
    assert len(client.search_runs([client.get_experiment_by_name("raygan").experiment_id])) == 1
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert "not_finite" not in run.data.tags
    assert run.data.params["real"] == "24"
    # An epoch is 24 photos. The power cut came after 32, and 24 more ended the second. Checkpoints within an epoch
    # leave no numbers.
    losses = {m.step: m.value for m in client.get_metric_history(result.run_id, "validation_nll")}
    assert list(losses) == [24, 56]
    best = min(losses, key=losses.get)
    assert best == 24
    # The model has the metrics of its own epoch, and not of the last.
    (logged,) = client.search_logged_models([run.info.experiment_id])
    found = {metric.key: (metric.step, metric.value) for metric in logged.metrics}
    assert found["validation_nll"] == (best, losses[best])
    assert found["best_accuracy"] == (best, result.metrics["accuracy"])
    card = client.get_model_version("raygan-classifier", result.model.version).description
    assert f"| images seen | {best} |" in card
    assert {"best_accuracy", "best_balanced_accuracy", "best_auroc", "best_ece"} <= set(run.data.metrics)
    pictures = {artifact.path for artifact in client.list_artifacts(result.run_id, "pictures")}
    assert {"pictures/confusion.png", "pictures/calibration.png"} <= pictures
    served = tracking.serving_classifier(client)
    assert (served.name, served.version) == ("raygan-classifier", result.model.version)
    assert client.get_model_version(served.name, served.version).tags["raygan.labels"] == "cat,dog"
    folder = tracking.download_model(client, served, tmp_path / "fetched")
    classifier = load_classifier(folder)
    assert (classifier.labels, classifier.image_size) == (("cat", "dog"), 32)
    assert classifier.about["validation_accuracy"] == result.metrics["accuracy"]
    # Of the 12 validation photos, cats and dogs by turns, every second one of each chose the epoch.
    assert result.metrics["validation_photos"] == classifier.about["held_back_photos"] == 6
    right = right_about(classifier, data / "c.parquet", [2, 3, 6, 7, 10, 11])
    assert result.metrics["accuracy"] == pytest.approx(right / 6)
    assert classifier.about["generated"] == 0
    assert set(json.loads(result.to_json())) == {"run_id", "model", "metrics", "promotion"}
    features = load_features(str(folder))
    assert (features.name, features.size) == (f"googlenet_{folder.name}", 32)
    assert features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 1024)
    with pytest.raises(ConfigurationError, match="is finished"):
        classify(settings)


def test_a_classifier_trained_on_generated_images_is_not_promoted(classify_settings, write_generator, tmp_path, capsys):
    folders = [write_generator(label) for label in ("cat", "dog")]
    settings = classify_settings(real_fraction=0, generated_images=8, epochs=1, model=folders, num_workers=2)
    result = classify(settings)
    client = tracking.connect(settings)
    assert tracking.serving_classifier(client) is None
    folder = tracking.download_model(client, result.model, tmp_path / "fetched")
    about = load_classifier(folder).about
    assert (about["real"], about["generated"], about["generators"]) == (0, 8, "cat-generator, dog-generator")
    printed = capsys.readouterr()
    assert "raygan-classifier/1 is not promoted: it learned from generated images" in printed.out
    assert "cat-generator was trained on other shards" in printed.err
    assert "only be measured on the 6 validation photos that choose its epoch" in printed.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "/nowhere"}, "prepare.py"),
        ({"batch_size": 500}, "fewer than one batch of 500"),
        ({"real_fraction": 0.5}, "no generator draws cat"),
        ({"real_fraction": 0.5, "model": ["nobody/3"]}, "neither a folder"),
        ({"real_fraction": 0.5, "real_images": 8, "generated_images": 80}, "leave one of the three out"),
        ({"real_images": 4000}, "4000 real photos are asked for"),
        ({"weights": "/nowhere.pth"}, "does not hold GoogLeNet"),
        ({"num_workers": CORES + 1, "batch_size": CORES + 1}, "do not fit this cluster"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(classify_settings, changes, says):
    with pytest.raises(RayganError, match=says) as raised:
        classify(classify_settings(**changes))
    assert "\n" not in str(raised.value)


def test_shards_with_one_label_are_refused(classify_settings, write_shards):
    root = write_shards(per_label=8, folder="single")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["classes"] = ["cat"]
    for shard in manifest["shards"]:
        del shard["rows"]["dog"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match="one label cat"):
        classify(classify_settings(data=str(root)))
