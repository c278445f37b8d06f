"""An objective, an architecture and a feature network from packages, in one training without a change to raygan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygan.errors import RayganError
from raygan.models.gan import load_generator
from tests.helpers import finish_job, make_package

OBJECTIVE = '''
from torch.nn.functional import relu

from raygan.training.objectives import Objective


class Hinge(Objective):
    """Hinge loss (Lim and Ye 2017): scores beyond the margin of 1 are right enough."""

    panels = {"real_hinge": "losses", "fake_hinge": "losses"}
    allows_batch_norm = True

    def critic_loss(self, critic, reals, fakes, mix, penalty_weight):
        on_real, on_fake = relu(1 - critic(reals)), relu(1 + critic(fakes))
        return on_real + on_fake, {"real_hinge": on_real.detach(), "fake_hinge": on_fake.detach()}

    def generator_loss(self, critic, reals, fakes):
        return -critic(fakes), {}
'''


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


def test_a_training_uses_what_packages_offer(packages, installed, train_settings):
    make_package(packages, "hinge_gan", OBJECTIVE, "[raygan.objectives]\nhinge = hinge_gan:Hinge")
    make_package(packages, "linear_gan", ARCHITECTURE, "[raygan.architectures]\nlinear = linear_gan:Linear")
    make_package(packages, "color_features", FEATURES, "[raygan.features]\ncolors = color_features:colors")
    assert "--objective {wgan-gp,dcgan,r3gan,hinge}" in finish_job("train", "--help", environment=installed).stdout
    toys = ["--objective", "hinge", "--architecture", "linear", "--quality-network", "colors"]
    settings = train_settings(name="toys", num_workers=1, quality_samples=16, quality_every=0.08)
    job = finish_job("train", *toys, settings=settings, environment=installed)
    assert job.returncode == 0, job.stderr
    result = json.loads(job.stdout.splitlines()[-1])
    metrics = result["metrics"]
    assert "kid16_colors" in metrics
    # The critic's loss is the sum of its terms, means over the same images.
    assert metrics["critic_loss"] == pytest.approx(metrics["real_hinge"] + metrics["fake_hinge"], rel=1e-5)
    description = json.loads(Path(result["checkpoint"], "generator.json").read_text())
    assert description["networks"]["architecture"] == "linear"
    # Without the packages, errors say what is missing.
    with pytest.raises(
        RayganError, match="architecture must be one of dcgan, skip, residual, not 'linear'; install the package"
    ):
        load_generator(Path(result["checkpoint"]))
    refused = finish_job("train", "--objective", "hinge", "--dry-run", settings=settings)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --objective: must be one of wgan-gp, dcgan, r3gan (got 'hinge')\n",
    )
