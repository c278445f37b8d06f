"""The textbook computes what raygan computes, operations are counted right, and ratios follow from the rates."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from raygan.benchmarks.candidates import TEXTBOOK, Candidate, check_losses, check_objective, count_operations
from raygan.benchmarks.settings import TrainStepBenchmarkSettings
from raygan.benchmarks.textbook import TextbookStep
from raygan.benchmarks.train_step import benchmark, candidate_of
from raygan.errors import RayganError
from raygan.models.gan import NetworkSettings
from raygan.training.settings import StepOptions


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny steps on several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the benchmark's processes
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    return TrainStepBenchmarkSettings(image_size=32, width=4, batch_size=4, rounds=1, seconds=0.05)


@pytest.fixture
def make(tiny):
    def candidate(preset: str, name: str = "") -> Candidate:
        return candidate_of(name or preset, preset, "fp32", tiny, torch.device("cpu"))

    return candidate


def test_losses_equal_the_textbooks(make):
    check_objective(make("wgan-gp-128"), make("wgan-gp-128", TEXTBOOK))
    assert check_losses(make("wgan-gp-128"), make("wgan-gp-128", TEXTBOOK)) < 1e-5


def test_the_textbook_has_torchs_own_layers():
    critic = TextbookStep(NetworkSettings(32, 4, 2), StepOptions()).critic
    kinds = {type(layer) for layer in critic.modules() if not list(layer.children())}
    assert kinds == {nn.Conv2d, nn.InstanceNorm2d, nn.LeakyReLU}


def test_another_objective_is_noticed(make):
    ours = make("wgan-gp-128")
    changed = replace(ours, settings=ours.settings.model_copy(update={"penalty_weight": 10.1}))
    with pytest.raises(RayganError, match="not the same objective"):
        check_objective(changed, make("wgan-gp-128", TEXTBOOK))
    with pytest.raises(RayganError, match="more than rounding"):
        check_losses(changed, make("wgan-gp-128", TEXTBOOK))


def test_a_critic_step_costs_its_convolutions(make):
    """DCGAN at 32 px by hand: the generator forwards, the critic forwards and backwards on reals and fakes."""
    candidate = make("dcgan-64")
    z_dim, width = candidate.networks.z_dim, candidate.networks.width
    taps = 2 * 4 * 4  # a multiplication and an addition for each tap of a 4 x 4 kernel
    # A transposed convolution applies its taps to each input, a convolution to each output. Three blocks and the exit.
    generator = taps * (z_dim * 4 * width + 4**2 * 4 * width * 2 * width + 8**2 * 2 * width * width + 16**2 * width * 3)
    first = taps * 16**2 * 3 * width
    critic = first + taps * (8**2 * width * 2 * width + 4**2 * 2 * width * 4 * width + 4 * width)
    # Backward takes a product for the weights and one for the inputs, except for the images.
    by_hand = generator + 2 * (3 * critic - first)
    assert count_operations(candidate, "critic").flops == by_hand


def test_a_lazy_penalty_counts_as_often_as_it_is_taken(make):
    lazy = make("wgan-gp-64")
    always = replace(lazy, settings=lazy.settings.model_copy(update={"penalty_every": 1}))
    never = replace(lazy, settings=lazy.settings.model_copy(update={"penalty_weight": 0.0}))
    wanted = (count_operations(always, "critic").flops + 3 * count_operations(never, "critic").flops) / 4
    assert lazy.settings.penalty_every == 4
    assert count_operations(lazy, "critic").flops == pytest.approx(wanted)


def test_rates_ratios_and_shares_agree(tiny, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    presets = {"presets": ["wgan-gp-128"], "precisions": ["fp32"], "json_file": str(file)}
    result = benchmark(tiny.model_copy(update=presets))
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))
    yardstick, ours = result["rows"]["textbook fp32"], result["rows"]["wgan-gp-128 fp32"]
    for part in ("critic", "iteration"):
        assert yardstick[part]["ratio"] == 1
        rates = ours[part]["images_per_second"] / yardstick[part]["images_per_second"]
        assert ours[part]["ratio"] == pytest.approx(rates)
        share = ours[part]["images_per_second"] * ours[part]["flops_per_image"] / result["matrix_peak"]["fp32"]
        assert ours[part]["share_of_peak"] == pytest.approx(share)
        # Only the textbook keeps the generator's graph.
        assert ours[part]["flops_per_image"] < yardstick[part]["flops_per_image"]
    assert "losses of an iteration" in capsys.readouterr().out
