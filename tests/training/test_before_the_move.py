"""What version 0.1.0 left in storage and registry can still be used."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from raygan.models.gan import load_generator
from raygan.models.latents import images_of, latents_of
from raygan.runtime import storage
from raygan.training.train import train

LEFT = Path(__file__).parent / "before_the_move"


def test_a_registered_generator_draws_what_it_drew():
    generator, about = load_generator(LEFT / "generator")
    drawn = images_of(generator, latents_of(range(4), generator.settings.z_dim)).numpy()
    # Not bit for bit: the images were drawn on another processor.
    assert np.abs(drawn.astype(int) - np.load(LEFT / "images.npy")).max() <= 1
    assert about["kimg"] == 0.112


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_resumed_from_its_checkpoint(train_settings, capsys):
    settings = train_settings(name="before-the-move", width=2, z_dim=4, num_workers=1, epochs=3)
    run = Path(settings.storage, "runs", "before-the-move")
    shutil.copytree(LEFT / "run", run)
    result = train(settings)
    assert "resuming before-the-move" in capsys.readouterr().out
    assert result.metrics["images"] == 168  # three epochs of seven batches of eight
    lines = storage.read_text(str(run / "metrics.jsonl")).splitlines()
    known = (LEFT / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines[: len(known)] == known
    assert len(lines) > len(known)
