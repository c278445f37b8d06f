"""Classification through the real Ray Train path: its gradients, its records, its mixtures, its refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import ray.train
import torch
from pydantic import ValidationError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from raygan import tracking
from raygan.classifier.classify import Best, chosen_generators, classify, training_images
from raygan.classifier.loop import Lessons
from raygan.classifier.mixture import balanced, mixture_sizes
from raygan.classifier.settings import ClassifySettings
from raygan.classifier.step import ClassifierFit, FitSettings
from raygan.data.batches import Photos, load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.models.distributed import Share
from raygan.models.features import load_features
from raygan.models.gan import Generator, NetworkSettings, save_generator
from raygan.models.googlenet import build_googlenet, load_classifier
from raygan.models.latents import seeded
from raygan.sampling.generators import NamedGenerator

pytestmark = pytest.mark.usefixtures("ray_cluster")

FIT = FitSettings(batch_size=7, precision="fp64", sync_batch_norm=True, warmup=0.5)  # over two workers: 3 and 4


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def one_step(config):
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    fit = ClassifierFit(2, FIT, 4, "cpu", share)
    without_dropout(fit.net)
    fit.step(torch.from_numpy(config["images"][share.rows(7)]), torch.from_numpy(config["targets"][share.rows(7)]))
    if share.rank == 0:
        save_file({name: p.grad.contiguous() for name, p in fit.net.named_parameters()}, config["out"] + ".gradients")
        save_file({name: b.contiguous() for name, b in fit.net.named_buffers()}, config["out"] + ".statistics")


def changed_by_hand(image, draws):
    """One image (3, 32, 32), flipped and shifted with numpy."""
    shifts = [int(draw * 5) - 2 for draw in draws[1:].tolist()]
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    flipped = padded[:, :, ::-1] if draws[0] < 0.5 else padded
    return flipped[:, 2 + shifts[0] : 34 + shifts[0], 2 + shifts[1] : 34 + shifts[1]]


def test_a_step_of_two_workers_equals_a_single_process(tmp_path):
    """The oracle is a plain float64 pass over the whole batch, with torch's own batch norm and no DDP."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    targets = random.integers(0, 2, 7)
    out = str(tmp_path / "step")
    TorchTrainer(
        one_step,
        train_loop_config={"images": images, "targets": targets, "out": out},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path), name="step"),
    ).fit()
    torch.manual_seed(0)
    net = build_googlenet(2).double().train()
    without_dropout(net)
    draws = torch.rand(7, 3, generator=seeded(0, 0, "classify"))
    pixels = np.stack([changed_by_hand(image, draw) for image, draw in zip(images, draws, strict=True)])
    answer = net(((torch.from_numpy(pixels).float() - 127.5) / 127.5).double())
    right = torch.from_numpy(targets)
    loss = F.cross_entropy(answer.logits, right)
    loss = loss + 0.3 * (F.cross_entropy(answer.aux_logits1, right) + F.cross_entropy(answer.aux_logits2, right))
    loss.backward()
    found = load_file(out + ".gradients")
    for name, parameter in net.named_parameters():
        assert (found[name] - parameter.grad).norm() < 1e-6 * parameter.grad.norm(), name
    found = load_file(out + ".statistics")
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(found[name], buffer, rtol=1e-9, atol=1e-12)


@pytest.fixture
def classify_settings(new_storage, write_shards):
    """A function that gives settings of a classification of seconds; keyword arguments change them."""

    def make(**changes: object) -> ClassifySettings:
        values = {
            "storage": str(new_storage),
            "tracking_uri": None,
            "epochs": 2,
            "batch_size": 8,
            **changes,
        }
        if "data" not in values:
            values["data"] = str(write_shards(per_label=8))
        return ClassifySettings.model_validate(values)

    return make


def generator_folder(tmp_path, label, size=32):
    folder = tmp_path / f"{label}-generator"
    save_generator(folder, Generator(NetworkSettings(image_size=size, z_dim=4, width=2)), {"label": label})
    return str(folder)


def test_a_classification_leaves_a_model_pictures_and_a_finished_run(classify_settings, tmp_path, monkeypatch):
    settings = classify_settings(name="whole")

    def refuse(*args, **kwargs):
        raise RayganError("the registry is away")

    # The run is cut off just before its end; the same command goes on and need not train again.
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "register_classifier", refuse)
        with pytest.raises(RayganError, match="registry is away"):
            classify(settings)
    with pytest.raises(ConfigurationError, match=r"seed was 0, now 1"):
        classify(settings.model_copy(update={"seed": 1}))
    result = classify(settings)
    client = tracking.connect(settings)
    assert len(client.search_runs([client.get_experiment_by_name("raygan").experiment_id])) == 1
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["real"] == "24"
    # 24 photos make 3 batches of 8 an epoch.
    assert [m.step for m in client.get_metric_history(result.run_id, "validation_accuracy")] == [24, 48]
    assert {"best_accuracy", "best_balanced_accuracy", "best_auroc", "best_ece"} <= set(run.data.metrics)
    pictures = {artifact.path for artifact in client.list_artifacts(result.run_id, "pictures")}
    assert {"pictures/confusion.png", "pictures/calibration.png"} <= pictures
    served = tracking.serving_classifier(client)
    assert (served.name, served.version) == ("raygan-classifier", result.model.version)
    assert client.get_registered_model(served.name).tags["raygan.labels"] == "cat,dog"
    folder = tracking.download_model(client, served, tmp_path / "fetched")
    classifier = load_classifier(folder)
    assert (classifier.labels, classifier.image_size) == (("cat", "dog"), 32)
    assert classifier.about["validation_accuracy"] == result.metrics["accuracy"]
    assert classifier.about["generated"] == 0
    assert set(json.loads(result.to_json())) == {"run_id", "model", "metrics"}
    features = load_features(str(folder))
    assert (features.name, features.size) == ("googlenet_classifier", 32)
    assert features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 1024)
    with pytest.raises(ConfigurationError, match="is finished"):
        classify(settings)


@pytest.mark.usefixtures("ray_cluster")
def test_a_classifier_that_learnt_from_generators_does_not_take_the_judges_place(classify_settings, tmp_path, capsys):
    folders = [generator_folder(tmp_path, label) for label in ("cat", "dog")]
    settings = classify_settings(real_fraction=0, generated_images=8, epochs=1, model=folders)
    result = classify(settings)
    client = tracking.connect(settings)
    assert tracking.serving_classifier(client) is None
    folder = tracking.download_model(client, result.model, tmp_path / "fetched")
    about = load_classifier(folder).about
    assert (about["real"], about["generated"], about["generators"]) == (0, 8, "cat-generator, dog-generator")
    said = capsys.readouterr()
    assert "--promote moves it to version 1" in said.out
    assert "cat-generator was trained on other shards" in said.err


def test_generated_images_take_the_place_of_real_ones(classify_settings, tmp_path):
    folders = [generator_folder(tmp_path, label) for label in ("cat", "dog")]
    settings = classify_settings(real_fraction=0.25, real_images=8, model=folders)
    data = DataSet.open(settings.data)
    images, made_of = training_images(settings, data, chosen_generators(settings, data))
    assert made_of == {"real": 8, "generated": 24, "generators": "cat-generator, dog-generator"}
    blocks = [images.block(number) for number in range(len(images.rows))]
    classes = np.concatenate([classes for _, classes in blocks])
    assert np.bincount(classes).tolist() == [16, 16]
    assert sum(len(pixels) for pixels, _ in blocks) == len(images) == 32
    real = np.concatenate([load_photos(data, "train", None).block(n)[0] for n in range(2)])
    known = {picture.tobytes() for picture in real}
    assert sum(picture.tobytes() in known for pixels, _ in blocks for picture in pixels) == 8


def test_generated_images_depend_on_their_number_alone():
    torch.manual_seed(0)
    one = NamedGenerator("g", Generator(NetworkSettings(image_size=32, z_dim=4, width=2)).eval(), ("cat",), {})
    whole = one.sample("cat", 150, seed=3)
    assert torch.equal(one.sample("cat", 22, seed=3, first=128), whole[128:])
    assert not torch.equal(one.sample("cat", 10, seed=4), whole[:10])


def test_the_best_epoch_is_of_the_lowest_loss_and_patience_ends():
    best = Best()
    for nll, accuracy, since in ((0.5, 0.8, 0), (0.6, 0.9, 1), (0.4, 0.7, 0), (0.45, 0.95, 1), (0.41, 0.9, 2)):
        best.saw({"validation_nll": nll, "validation_accuracy": accuracy})
        assert best.epochs_since == since
    assert (best.nll, best.accuracy) == (0.4, 0.7)
    assert best.is_stale(2)
    assert not best.is_stale(3)
    assert not best.is_stale(0)  # endless patience


def test_patience_begins_when_the_learning_rate_has_fallen_to_half():
    fit = ClassifierFit(2, FitSettings(warmup=0.2), batches=100)
    nothing = Photos((), ())
    lessons = Lessons(fit, nothing, nothing, lambda images: None)
    settling = []
    for fit.batches_done in range(100):
        if lessons.is_settling:
            settling.append(fit.batches_done)
    # It rises to 1 over 20 batches and falls to 0 over 80.
    assert settling == list(range(61, 100))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generated_images": 5}, "generated_images is for generated images"),
        ({"model": ["x"]}, "model is for generated images"),
        ({"real_fraction": 0, "real_images": 5}, "real_images is for real photos"),
        ({"batch_size": 2, "num_workers": 4}, "smaller than num_workers"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(classify_settings, changes, says):
    with pytest.raises(ValidationError, match=says):
        classify_settings(**changes)


def test_subsets_are_balanced_and_nested():
    classes = np.array([0] * 20 + [1] * 5)
    small, large = (set(balanced(classes, count, 2, seed=1).tolist()) for count in (6, 14))
    assert np.bincount(classes[list(small)]).tolist() == [3, 3]
    assert np.bincount(classes[list(large)]).tolist() == [9, 5]  # no more of the second are there
    assert small < large


@pytest.mark.parametrize(
    ("asked", "makes"),
    [
        ((None, 1.0, 100, None), (100, 0)),
        ((30, 1.0, 100, None), (30, 0)),
        ((None, 0.0, 100, None), (0, 100)),
        ((None, 0.5, 100, None), (100, 100)),
        ((20, 0.2, 100, None), (20, 80)),
        ((None, 0.25, 100, 30), (10, 30)),
        ((10, 0.25, 100, 30), (10, 30)),
    ],
)
def test_sizes_of_mixtures(asked, makes):
    assert mixture_sizes(*asked) == makes


def one_label(root):
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["classes"] = ["cat"]
    (root / "manifest.json").write_text(json.dumps(manifest))


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
        ({"num_workers": 9, "batch_size": 9}, "do not fit this cluster"),
    ],
)
def test_what_cannot_work_is_said_before_work_starts(classify_settings, changes, says):
    with pytest.raises(RayganError, match=says) as raised:
        classify(classify_settings(**changes))
    assert "\n" not in str(raised.value)


def test_unfit_data_and_generators_are_said(classify_settings, write_shards, tmp_path):
    root = write_shards(per_label=8, folder="single")
    one_label(root)
    with pytest.raises(ConfigurationError, match="one label cat"):
        classify(classify_settings(data=str(root)))
    strange = classify_settings(real_fraction=0.5, model=[generator_folder(tmp_path, "fox")])
    with pytest.raises(RayganError, match=r"draws fox, but .* has only cat, dog"):
        chosen_generators(strange, DataSet.open(strange.data))
    large = classify_settings(
        data=strange.data,
        real_fraction=0.5,
        model=[generator_folder(tmp_path, label, size=64) for label in ("cat", "dog")],
    )
    with pytest.raises(ConfigurationError, match="draws 64 px images"):
        chosen_generators(large, DataSet.open(large.data))
