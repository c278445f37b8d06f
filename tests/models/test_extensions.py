"""An architecture and a feature network from installed packages, in a real training without a change to raygan."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from raygan.errors import RayganError
from raygan.models.gan import load_generator
from tests.helpers import make_package, start_job

ARCHITECTURE = '''
from torch import nn

from raygan.models.gan import Generator


class LinearGenerator(Generator):
    """A small image in one step, enlarged."""

    def __init__(self, settings):
        super().__init__(settings)
        self.layers = nn.Sequential(
            nn.Linear(settings.z_dim, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)), nn.Upsample(settings.image_size)
        )

    def forward(self, latents, classes=None):
        return self.layers(latents)


class LinearCritic(nn.Sequential):
    def __init__(self, settings):
        super().__init__(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, images, classes=None):
        return super().forward(images).flatten()


class Linear:
    generator, critic = LinearGenerator, LinearCritic
'''

FEATURES = '''
from torch import nn

from raygan.models.features import Features


def colors():
    """The mean color of each quarter of the image."""
    net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    return Features("colors", net, size=16, dim=12, mean=[127.5] * 3, deviation=[127.5] * 3)
'''


@pytest.mark.cluster
def test_a_training_uses_an_architecture_and_a_feature_network_from_packages(tmp_path, train_settings):
    packages = tmp_path / "packages"
    make_package(packages, "linear_gan", ARCHITECTURE, "[raygan.architectures]\nlinear = linear_gan:Linear")
    make_package(packages, "color_features", FEATURES, "[raygan.features]\ncolors = color_features:colors")
    job = start_job(
        "train",
        ["--architecture", "linear", "--quality-network", "colors", "--quality-every", "0.08"],
        settings=train_settings(name="toys", num_workers=1, quality_samples=16),
        address="local",
        environment={"PYTHONPATH": str(packages)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = job.communicate(timeout=280)
    assert job.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert "kid16_colors" in result["metrics"]
    description = json.loads(Path(result["checkpoint"], "generator.json").read_text())
    assert description["networks"]["architecture"] == "linear"
    # Without the package, the error says what is missing.
    with pytest.raises(RayganError, match="architecture must be one of dcgan, not 'linear'; install the package"):
        load_generator(Path(result["checkpoint"]))
