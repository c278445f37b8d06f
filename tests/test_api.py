"""What a notebook gets from `import raygan`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raygan
from raygan import tracking
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.runtime.settings import StorageSettings
from raygan.sampling.sample import sample
from raygan.sampling.settings import SampleSettings

LABELS = ("cat", "dog")


@pytest.fixture
def place(new_storage, monkeypatch):
    """Keyword arguments that every function takes. The variables that the functions set are restored."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    return {"storage": str(new_storage)}


@pytest.fixture
def registered(place, tmp_path):
    """A generator and a classifier, in folders and in the registry."""
    torch.manual_seed(0)
    generator = build_generator(NetworkSettings(image_size=32, z_dim=8, width=4, labels=LABELS)).eval()
    save_generator(tmp_path / "generator", generator, {})
    save_classifier(tmp_path / "judge", build_googlenet(2, auxiliary=False), labels=LABELS, image_size=32, about={})
    with tracking.start_run(StorageSettings(**place), "r", job="test", params={}) as run:
        tracking.register_generator(run, tmp_path / "generator", "pets", labels=list(LABELS), promote=True)
        tracking.register_classifier(run, tmp_path / "judge", LABELS, promote=True)


def test_paths_of_python_are_taken():
    with pytest.raises(raygan.ConfigurationError, match=r"^--image-size: must be a power of two"):
        raygan.prepare(input=[Path("photos")], output=Path("shards"), outlier_network=Path("judge"), image_size=7)


def test_importing_the_package_imports_no_engine():
    program = """
import sys
import raygan
assert set(raygan.__all__) <= set(dir(raygan))
raygan.train
assert not {"ray", "torch", "mlflow"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_no_other():
    for name in raygan.__all__:
        assert getattr(raygan, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        raygan.trian  # noqa: B018


@pytest.mark.parametrize(
    ("call", "settings", "says"),
    [
        (raygan.train, {"data": "x", "lable": "cat"}, "lable is not a known setting; did you mean label?"),
        (raygan.train, {"data": "x", "prest": "quick"}, "prest is not a known setting; did you mean preset?"),
        (raygan.train, {"data": "x", "preset": "best"}, "preset: 'best' is unknown; choose one of best-128"),
        (raygan.train, {"data": "x", "epochs": 0}, "--epochs: "),
        (raygan.prepare, {"output": "x"}, "--input is required"),
        (lambda **settings: raygan.load_generator("x", **settings), {"storge": "x"}, "did you mean storage?"),
    ],
)
def test_a_wrong_keyword_is_answered_as_a_wrong_flag(call, settings, says):
    with pytest.raises(raygan.ConfigurationError) as raised:
        call(**settings)
    assert says in str(raised.value)


@pytest.mark.parametrize("name", ["raygan-generator-pets", "raygan-generator-pets/1", "folder"])
def test_a_generator_draws_the_image_of_each_seed(name, registered, place, tmp_path):
    generator = raygan.load_generator(tmp_path / "generator" if name == "folder" else name, **place)
    assert generator.labels == LABELS
    assert generator.image_size == 32
    images = generator.sample(seeds=[7, 9, 7], labels="dog", truncation=0.7)
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == np.uint8
    assert (images[0] == images[2]).all()
    assert (images[0] != images[1]).any()
    cats = generator.sample([7, 9, 7], label="cat", truncation=0.7)
    assert (images[0] != cats[0]).any()
    mixed = generator.sample([7, 9, 7], labels=["dog", "cat", "dog"], truncation=0.7)
    assert (mixed == np.stack([images[0], cats[1], images[2]])).all()
    with pytest.raises(raygan.ConfigurationError, match="give one of them"):
        generator.sample([1], labels="cat", label="dog")
    with pytest.raises(raygan.ConfigurationError, match="label must be one of cat, dog, not None"):
        generator.sample([1])
    for wrong in (0, 1.5, float("nan")):
        for draw in (lambda: generator.sample([1], "cat", wrong), lambda: generator.interpolate(1, 2, 3, "cat", wrong)):  # noqa: B023
            with pytest.raises(raygan.ConfigurationError, match=f"above 0 and at most 1, not {wrong:g}"):
                draw()


def test_a_generator_walks_takes_latents_and_leaves_as_onnx(registered, place, tmp_path):
    generator = raygan.load_generator("models:/raygan-generator-pets@champion", **place)
    ends = generator.sample([3, 4], "cat", 0.7)
    walk = generator.interpolate(3, 4, 5, labels="cat", truncation=0.7)
    assert walk.shape == (5, 32, 32, 3)
    assert (np.abs(walk[[0, -1]].astype(int) - ends) <= 1).all()
    with pytest.raises(raygan.ConfigurationError, match="frames must be at least 2"):
        generator.interpolate(3, 4, 1, "cat")
    latents = generator.latents([3, 4])
    assert (generator.draw(latents * np.float32(0.7), ["cat", "cat"]) == ends).all()
    assert generator.draw(generator.latents([]), "cat").shape == (0, 32, 32, 3)
    with pytest.raises(raygan.ConfigurationError, match="2 images need one label or 2, not 3"):
        generator.draw(latents, ["cat", "cat", "dog"])
    assert generator.directions(2).shape == (2, 8)
    assert (generator.to("cpu").sample([3, 4], "cat", 0.7) == ends).all()
    generator.save_onnx(str(tmp_path / "pets.onnx"))
    assert (tmp_path / "pets.onnx").stat().st_size > 1000


def test_samples_are_those_of_the_job(ray_cluster, registered, place, tmp_path):
    values = {**place, "model": "raygan-generator-pets", "label": "dog", "n": 5, "seed": 3, "truncation": 0.7}
    sample(SampleSettings(**values, output=str(tmp_path / "samples"), tracking_uri=None))
    files = sorted((tmp_path / "samples").glob("*.png"))
    images = raygan.load_generator("raygan-generator-pets", **place).sample(range(3, 8), "dog", 0.7)
    assert (np.stack([np.asarray(Image.open(file)) for file in files]) == images).all()


@pytest.mark.parametrize("name", ["raygan-classifier", "raygan-classifier/1", "folder"])
def test_a_classifier_gives_a_probability_for_each_label(name, registered, place, tmp_path):
    classifier = raygan.load_classifier(tmp_path / "judge" if name == "folder" else name, **place)
    assert classifier.labels == LABELS
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    probabilities = classifier.probabilities(images)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities, raygan.load_classifier(**place).probabilities(images))
    for wrong in (images / 255, images[0], images.transpose(0, 3, 1, 2)):
        with pytest.raises(raygan.ConfigurationError, match=r"images must be uint8 \(n, S, S, 3\), not"):
            classifier.probabilities(wrong)


def test_a_model_that_is_nowhere_is_named(place):
    for load in (raygan.load_generator, raygan.load_classifier):
        with pytest.raises(raygan.ConfigurationError, match="'nobody' is neither a folder"):
            load("nobody", **place)
