"""Animal mass: nothing in noise and grey, and labels that ImageNet doesn't have."""

from __future__ import annotations

import pytest
import torch

from raygan.errors import ConfigurationError
from raygan.metrics.animals import animal_mass, knows


def test_noise_and_grey_show_no_animal():
    noise = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = torch.full((2, 3, 160, 160), 127, dtype=torch.uint8)
    assert animal_mass(noise, "cat").mean() < 0.05
    assert animal_mass(grey, "dog").mean() < 0.2
    assert animal_mass(noise, "dog").shape == (4,)


def test_only_imagenets_labels_are_known():
    assert knows("cat")
    assert not knows("bird")
    with pytest.raises(ConfigurationError, match="cat, dog"):
        animal_mass(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "bird")
