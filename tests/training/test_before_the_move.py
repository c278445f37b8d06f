"""What version 0.1.0 left in the registry can still be used; `tests/test_object_store.py` resumes the run it left."""

from pathlib import Path

import numpy as np

from raygan.models.gan import load_generator
from raygan.models.latents import images_of, latents_of

LEFT = Path(__file__).parent / "before_the_move"


def test_a_registered_generator_draws_what_it_drew():
    generator, about = load_generator(LEFT / "generator")
    drawn = images_of(generator, latents_of(range(4), generator.settings.z_dim)).numpy()
    # Not bit for bit: the images were drawn on another processor.
    assert np.abs(drawn.astype(int) - np.load(LEFT / "images.npy")).max() <= 1
    assert about["kimg"] == 0.112
