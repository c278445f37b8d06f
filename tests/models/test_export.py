"""ONNX files compute what torch computes, by ONNX Runtime."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from raygan.models.export import OPSET, save_classifier_onnx, save_generator_onnx
from raygan.models.gan import IMAGE_SIZES, NetworkSettings, build_generator, to_uint8
from raygan.models.googlenet import load_classifier, to_input
from raygan.models.latents import latents_of
from raygan.settings import preset_names, resolve
from raygan.training.build import network_settings
from raygan.training.settings import TrainSettings
from tests.conftest import takes_long
from tests.serve.local import make_classifier, make_generator


def check_generator(generator, folder):
    """Write the file, and compare batches of two sizes."""
    labels = generator.labels or ("cat",)
    save_generator_onnx(generator, folder / "g.onnx", labels)
    session = onnxruntime.InferenceSession(folder / "g.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        inputs = {"latents": latents_of(range(count), generator.settings.z_dim)}
        if generator.labels:
            inputs["classes"] = torch.arange(count) % len(labels)
        (found,) = session.run(["images"], {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = generator(*inputs.values())
        np.testing.assert_allclose(found, expected, atol=1e-4)
        shift = to_uint8(torch.from_numpy(found)).int() - to_uint8(expected).int()
        assert shift.abs().max() <= 1
    return session.get_modelmeta().custom_metadata_map


def test_a_conditional_generator_draws_the_same_images(tmp_path):
    about = check_generator(make_generator(labels=("cat", "dog")), tmp_path)
    assert json.loads(about["labels"]) == ["cat", "dog"]
    assert (about["image_size"], about["z_dim"]) == ("32", "8")
    assert "127.5" in about["images"]
    model = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [one.version for one in model.opset_import if not one.domain] == [OPSET]


@takes_long
def test_a_classifier_gives_the_same_probabilities(tmp_path):
    classifier = load_classifier(make_classifier(tmp_path))
    save_classifier_onnx(classifier, tmp_path / "c.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == ["cat", "dog"]
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for count in (1, 5):
        (found,) = session.run(["probabilities"], {"images": to_input(images[:count], 32).contiguous().numpy()})
        np.testing.assert_allclose(found, classifier.probabilities(images[:count]), atol=1e-4)


@takes_long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", preset_names(TrainSettings))
def test_every_preset_is_exported_at_every_image_size(preset, tmp_path):
    settings = resolve(TrainSettings, {"preset": preset, "data": "x"})
    networks: NetworkSettings = network_settings(settings, ("cat", "dog") if settings.conditional else ())
    for size in IMAGE_SIZES:
        torch.manual_seed(0)
        check_generator(build_generator(replace(networks, image_size=size)).eval(), tmp_path)
