"""The registered classifier: found by name, cached by run and version, checked before work starts."""

import os
import shutil

import pytest
import torch

from raygan import tracking
from raygan.errors import ConfigurationError, RayganError
from raygan.models.features import load_features
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.tracking.networks import feature_network, registered_classifier
from raygan.training.monitor import with_network
from raygan.training.settings import TrainSettings


def register(settings, folder, seed):
    torch.manual_seed(seed)
    net = build_googlenet(2, auxiliary=False)
    save_classifier(folder, net, labels=("cat", "dog"), image_size=32, about={})
    with tracking.start_run(settings, "judge", job="test", params={}) as run:
        tracking.register_classifier(run, folder, ("cat", "dog"), promote=True)
    return net


def test_googlenet_is_the_promoted_version(settings, tmp_path):
    assert registered_classifier(settings) is None
    with pytest.raises(ConfigurationError, match="--quality-network: no classifier is registered"):
        feature_network(settings, "googlenet", "--quality-network")
    folders = []
    for seed in (1, 2):
        net = register(settings, tmp_path / str(seed), seed)
        folders.append(feature_network(settings, "googlenet", "--network"))
        assert torch.equal(load_features(folders[-1]).net.conv1.conv.weight, net.conv1.conv.weight)
    assert folders[0] != folders[1]
    chosen = TrainSettings(data="x", quality_network="googlenet", **settings.plain())
    assert with_network(chosen).quality_network == folders[1]
    # A run goes on with the classifier that it began with, unless that is another kind of network.
    assert with_network(chosen, {"quality_network": folders[0]}).quality_network == folders[0]
    assert with_network(chosen, {"quality_network": "efficientnet_lite0"}).quality_network == folders[1]
    assert with_network(chosen.model_copy(update={"quality_every": 0})).quality_network == "googlenet"


def test_first_versions_of_two_registries_do_not_collide(settings, tmp_path, empty_records):
    register(settings, tmp_path / "one", 1)
    first = registered_classifier(settings)
    other = settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/other.db"})
    shutil.copy(empty_records, tmp_path / "other.db")
    register(other, tmp_path / "two", 2)
    assert registered_classifier(other) != first
    assert registered_classifier(settings) == first


def test_a_folder_gets_an_absolute_path_and_what_is_not_a_network_is_refused(settings, tmp_path, monkeypatch):
    save_classifier(tmp_path / "judge", build_googlenet(2, auxiliary=False), labels=("a", "b"), image_size=32, about={})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("judge", "~/judge"):
        assert feature_network(settings, name, "--network") == os.path.join(tmp_path, "judge")
    (tmp_path / "empty.pth").touch()
    for name in ("resnet", "empty.pth"):
        with pytest.raises(ConfigurationError, match="--network: ") as raised:
            feature_network(settings, name, "--network")
        assert "\n" not in str(raised.value)
    (tmp_path / "judge" / "classifier.safetensors").write_bytes(b"cut")
    load_features.cache_clear()
    with pytest.raises(RayganError, match=r"classifier\.safetensors"):
        feature_network(settings, "judge", "--network")
