"""An objective from an installed package, in a real training without a change to raygan."""

import json
import subprocess

import pytest

from tests.helpers import make_package, start_job

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


def train(arguments, **options):
    return start_job("train", arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.cluster
def test_a_training_uses_an_objective_from_a_package(tmp_path, train_settings):
    make_package(tmp_path / "packages", "hinge_gan", OBJECTIVE, "[raygan.objectives]\nhinge = hinge_gan:Hinge")
    installed = {"PYTHONPATH": str(tmp_path / "packages")}
    help_text, _ = train(["--help"], environment=installed).communicate(timeout=60)
    assert "--objective {wgan-gp,dcgan,r3gan,hinge}" in help_text
    settings = train_settings(name="hinge", num_workers=1, epochs=1, critic_norm="batch", objective="dcgan")
    job = train(["--objective", "hinge"], settings=settings, address="local", environment=installed)
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    metrics = json.loads(output.splitlines()[-1])["metrics"]
    # The critic's loss is the sum of its terms, means over the same images.
    assert metrics["critic_loss"] == pytest.approx(metrics["real_hinge"] + metrics["fake_hinge"], rel=1e-5)
    refused = train(["--objective", "hinge", "--dry-run"], settings=settings)
    _, errors = refused.communicate(timeout=60)
    assert (refused.returncode, errors) == (
        2,
        "error: --objective: must be one of wgan-gp, dcgan, r3gan (got 'hinge')\n",
    )
