"""The best trial once more: measured on what did not choose it, and the rates that led to it."""

from dataclasses import replace

import pytest
import torch

from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.tuning.trial import TrialRecord
from raygan.tuning.winner import measure_winner, rates_of


def painted(folder, brightness, about):
    """A trial whose best checkpoint draws images of about this brightness, from -3 to 3."""
    torch.manual_seed(0)
    generator = build_generator(NetworkSettings(image_size=32, z_dim=8, width=4)).eval()
    with torch.no_grad():
        generator.exit[0].bias.fill_(brightness)
    save_generator(folder, generator, about)
    point, length = {"generator_lr": 1e-4}, {"kid_at": 25_000, "images": 30_000}
    return TrialRecord(folder.name, point, kid=0.1, checkpoint=str(folder), **length)


@pytest.mark.usefixtures("ray_cluster")
def test_the_winner_beats_the_baseline_only_by_more_than_the_error(train_settings, write_shards, tmp_path):
    data = str(write_shards(held_out=12, brightest=40))  # dark photos
    base = train_settings(data=data, quality_samples=32)
    dark, bright = painted(tmp_path / "dark", -2, {}), painted(tmp_path / "bright", 2, {})
    better = measure_winner(base, dark, bright)
    assert better.better is True
    assert set(better.metrics) == {
        f"fresh_kid32_efficientnet_lite{number}{end}" for number in (0, 2) for end in ("", "_error")
    }
    assert better.kid == better.metrics["fresh_kid32_efficientnet_lite0"]
    assert "12 photos that chose no trial" in better.summary
    assert " at 25 kimg: better by more than the standard error" in better.summary
    short = measure_winner(base, dark, replace(bright, images=5000, kid_at=5000))
    assert short.better is None
    assert " at 5 kimg: not compared, since the baseline was trained for only 5 kimg" in short.summary
    assert short.kid == better.kid
    lucky = measure_winner(base, bright, dark)  # chosen by chance
    assert lucky.better is False
    assert "worse by more than the standard error" in lucky.summary
    alone = measure_winner(base, dark, dark)
    assert alone.better is None
    assert "the baseline is the best" in alone.summary
    gone = measure_winner(base, TrialRecord("gone", {}, checkpoint=str(tmp_path / "gone")), bright)
    assert (gone.kid, gone.better) == (None, None)
    assert "could not be measured afresh" in gone.summary


def test_the_rates_of_a_population_are_those_of_their_time(tmp_path):
    lineage = [[0, 5e-4, 2e-4], [40_000, 1e-3, 2e-4], [80_000, 8e-4, 1e-4]]
    moved = painted(tmp_path / "moved", 0, {"rates": lineage})
    assert rates_of(moved) == {
        "generator_lr": 5e-4,
        "critic_lr": 2e-4,
        "rate_changes": ["40:0.001:0.0002", "80:0.0008:0.0001"],
    }
    assert rates_of(painted(tmp_path / "steady", 0, {"rates": lineage[:1]})) == {}
    assert rates_of(painted(tmp_path / "old", 0, {"label": "cat"})) == {}
    (tmp_path / "moved" / "generator.json").unlink()
    assert rates_of(moved) == {}
