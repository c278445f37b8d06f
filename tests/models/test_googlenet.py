"""The classifier: shapes at every size, folders written and read, and damaged folders refused."""

from __future__ import annotations

import json

import pytest
import torch

from raygan.errors import RayganError
from raygan.models.googlenet import build_googlenet, load_classifier, save_classifier, to_input


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier folder. The batch statistics have moved, so answers differ between images."""
    torch.manual_seed(0)
    net = build_googlenet(2).train()
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32))
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(folder, net, labels=("cat", "dog"), image_size=32, about={"accuracy": 0.9})
    return folder


def some_images(count, size):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_training_mode_answers_with_both_auxiliary_heads_at_every_size(size):
    outputs = build_googlenet(3).train()(torch.randn(2, 3, size, size))
    assert [tuple(output.shape) for output in outputs] == [(2, 3)] * 3
    sum(output.sum() for output in outputs).backward()


def test_a_folder_restores_the_network(folder):
    classifier = load_classifier(folder)
    assert (classifier.labels, classifier.image_size, classifier.about) == (("cat", "dog"), 32, {"accuracy": 0.9})
    images = some_images(70, 32)  # two batches
    found = classifier.probabilities(images)
    assert found.shape == (70, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(70))
    by_hand = classifier.net((images.float() - 127.5) / 127.5).softmax(1)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)
    assert classifier.probabilities(images[:0]).shape == (0, 2)


def test_images_of_other_sizes_are_resized(folder):
    classifier = load_classifier(folder)
    flat = torch.full((1, 3, 100, 100), 77, dtype=torch.uint8)
    small = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    torch.testing.assert_close(classifier.probabilities(flat), classifier.probabilities(small))
    with pytest.raises(ValueError, match="uint8"):
        to_input(torch.zeros(1, 3, 32, 32), 32)


def test_damaged_folders_are_refused_in_one_line(folder, tmp_path):
    weights = (folder / "classifier.safetensors").read_bytes()
    description = json.loads((folder / "classifier.json").read_text())

    def refusal(**changes):
        (tmp_path / "classifier.json").write_text(json.dumps({**description, **changes}))
        with pytest.raises(RayganError) as raised:
            load_classifier(tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    with pytest.raises(RayganError, match="not a model folder"):
        load_classifier(tmp_path)
    assert "classifier.safetensors is missing" in refusal()
    (tmp_path / "classifier.safetensors").write_bytes(weights[:1000])
    assert "truncated" in refusal()
    (tmp_path / "classifier.safetensors").write_bytes(weights)
    assert "does not fit" in refusal(labels=["cat", "dog", "fox"])
    assert "version 7" in refusal(version=7)
    assert "not describe a classifier" in refusal(labels=None)
    assert "not describe a classifier" in refusal(image_size=4)
    assert "its `about` is no object" in refusal(about=["accuracy"])
