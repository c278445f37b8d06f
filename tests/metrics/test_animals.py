"""Animal mass: no animal in nothing, and labels that ImageNet doesn't know."""

from __future__ import annotations

import pytest
import torch

from raygan.errors import ConfigurationError
from raygan.metrics.animals import AnimalMass


def test_there_is_no_animal_in_noise_or_in_grey():
    mass = AnimalMass()
    noise = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert mass(noise, "cat") < 0.05
    assert mass(torch.full((2, 3, 160, 160), 127, dtype=torch.uint8), "dog") < 0.2
    assert mass.per_image(noise, "dog").shape == (4,)
    assert mass.knows("cat")
    assert not mass.knows("bird")
    with pytest.raises(ConfigurationError, match="cat, dog"):
        mass(noise, "bird")
