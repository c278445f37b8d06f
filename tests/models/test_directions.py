"""SeFa's directions are those that maximize what the first layer passes on."""

from dataclasses import replace

import pytest
import torch

from raygan.errors import ConfigurationError
from raygan.models.directions import directions
from raygan.models.gan import NetworkSettings, build_generator

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)


@pytest.mark.parametrize("architecture", ["dcgan", "skip", "residual"])
@pytest.mark.parametrize("labels", [(), ("cat", "dog")])
def test_directions_are_the_right_singular_vectors_of_the_first_layer(architecture, labels):
    generator = build_generator(replace(NETWORKS, architecture=architecture, labels=labels))
    found = directions(generator, 3)
    first = next(value for name, value in generator.named_parameters() if name.endswith("weight")).detach()
    matrix = first.flatten(1).T if architecture != "residual" else first.flatten(1)  # outputs in rows
    expected = torch.linalg.svd(matrix[:, :8].double()).Vh[:3].float()
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-5, rtol=0)
    with pytest.raises(ConfigurationError, match="has 1 to 8 directions, not 9"):
        directions(generator, 9)
