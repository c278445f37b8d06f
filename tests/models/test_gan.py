"""DCGAN's layers, shapes and parameter counts against the papers', and what can't be built."""

import json
import resource

import pytest
import torch
from torch import nn

from raygan.errors import ConfigurationError, RayganError
from raygan.models import gan
from raygan.models.gan import (
    Generator,
    NetworkSettings,
    build_critic,
    build_generator,
    load_generator,
    load_networks,
    save_generator,
)
from raygan.registry import Registry

SIZES = [32, 64, 128, 256]


def layers(network):
    return [type(m).__name__ for m in network.modules() if not list(m.children())]


@pytest.mark.parametrize("size", SIZES)
def test_shapes_at_every_resolution(size):
    settings = NetworkSettings(image_size=size, z_dim=7, width=2)
    images = build_generator(settings)(torch.randn(3, 7))
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1
    assert build_critic(settings)(images).shape == (3,)


@pytest.mark.parametrize(("size", "blocks"), [(32, 3), (64, 4), (128, 5), (256, 6)])
def test_layers_for_wgan_gp(size, blocks):
    """Five blocks and an exit layer at 128 px, and one block less for each halving of the side."""
    settings = NetworkSettings(image_size=size, z_dim=200, width=2)
    block = ["ConvTranspose2d", "BatchNorm2d", "ReLU"]
    assert layers(build_generator(settings)) == block * blocks + ["ConvTranspose2d", "Tanh"]
    assert layers(build_critic(settings)) == ["Conv2d", "InstanceNorm2d", "LeakyReLU"] * blocks + ["Conv2d"]


def test_channels_and_layers_for_dcgan_at_64_px():
    settings = NetworkSettings(image_size=64, z_dim=100, width=64, critic_norm="batch")
    generator, critic = build_generator(settings), build_critic(settings)
    up = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [up[0].in_channels] + [m.out_channels for m in up] == [100, 512, 256, 128, 64, 3]
    down = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in down] == [64, 128, 256, 512, 1]
    # The first block of a batch-normalized discriminator has no norm (Radford et al. 2015, section 3).
    assert layers(critic) == ["Conv2d", "LeakyReLU"] + ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3 + ["Conv2d"]


def test_wgan_gp_128_parameter_counts_by_hand():
    settings = NetworkSettings(image_size=128, z_dim=200, width=64)
    inner = 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024
    norms = 2 * (64 + 128 + 256 + 512 + 1024)
    generator = 16 * (200 * 1024 + inner + 64 * 3) + norms + 3
    assert sum(p.numel() for p in build_generator(settings).parameters()) == generator
    assert sum(p.numel() for p in build_critic(settings).parameters()) == 16 * (3 * 64 + inner + 1024) + norms + 1


def test_dcgan_64_parameter_counts_by_hand():
    settings = NetworkSettings(image_size=64, z_dim=100, width=64, critic_norm="batch")
    kernels = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    norms = 2 * (512 + 256 + 128 + 64)
    assert sum(p.numel() for p in build_generator(settings).parameters()) == kernels + norms + 3
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    biases, norms = 64 + 1, 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in build_critic(settings).parameters()) == kernels + biases + norms


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 48},
        {"image_size": 512},
        {"z_dim": 0},
        {"width": 0},
        {"critic_norm": "spectral"},
        {"labels": ("cat",)},
        {"architecture": "unheard-of"},
    ],
)
def test_settings_that_can_not_be_built_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NetworkSettings(**wrong)


def test_an_architecture_whose_generator_is_no_generator_is_refused(monkeypatch):
    own = {"wrong": "tests.models.test_gan:Wrong"}
    monkeypatch.setattr(gan, "ARCHITECTURES", Registry("raygan.architectures", own))
    with pytest.raises(ConfigurationError, match="'wrong': its generator must subclass Generator"):
        build_generator(NetworkSettings(architecture="wrong"))


class Wrong:
    @staticmethod
    def generator(settings):
        return nn.Linear(settings.z_dim, 3)


def test_settings_written_before_there_were_architectures_are_dcgans(tmp_path):
    (tmp_path / "generator.json").write_text('{"version": 1, "networks": {"z_dim": 5}, "about": {}}')
    networks, _ = load_networks(tmp_path / "generator.json")
    assert networks == NetworkSettings(z_dim=5, architecture="dcgan")
    assert isinstance(build_generator(networks), Generator)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"z_dim": 300_000}, "z_dim must be 1 to 4096"),
        ({"z_dim": 4096, "width": 1024, "image_size": 256}, "does not fit the architecture"),
    ],
)
def test_a_description_of_huge_networks_is_refused_before_they_are_built(tmp_path, change, says):
    save_generator(tmp_path, build_generator(NetworkSettings(image_size=32, z_dim=2, width=2)), {})
    description = json.loads((tmp_path / "generator.json").read_text())
    description["networks"] |= change
    (tmp_path / "generator.json").write_text(json.dumps(description))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RayganError, match=says):
        load_generator(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; the networks would take 1.7 GB


def test_a_description_that_is_no_description_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"about": "' + "x" * 2**20 + '"}'):
        (tmp_path / "generator.json").write_text(text)
        with pytest.raises(RayganError, match=r"generator\.json"):
            load_networks(tmp_path / "generator.json")
