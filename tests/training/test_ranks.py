"""Steps over several ranks, against one process that has the whole batch, and resumed against uninterrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings
from raygan.training.checkpoints import load_training, save_training
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep
from tests.helpers import run_ranks

#: An uneven split: two ranks get two and three images.
BATCH, BATCHES = 5, 4

CASES = [("wgan-gp", "instance"), ("dcgan", "none"), ("dcgan", "batch"), ("r3gan", "none")]

#: Ways to sum gradients over ranks: in many pieces, and in half the bytes.
WAYS = {"pieces": {"gradient_bucket": 0.001}, "bf16": {"gradient_precision": "bf16"}}


def weights(step: GanStep) -> dict[str, torch.Tensor]:
    networks = {"critic": step.critic, "generator": step.generator, "ema": step.ema.module}
    return {
        f"{name}.{part}": value.clone()
        for name, network in networks.items()
        for part, value in network.state_dict().items()
    }


def fit(step: GanStep, batches: range, size: int) -> GanStep:
    """Train on this rank's rows of random batches, the same ones for the same numbers."""
    for number in batches:
        random = torch.Generator().manual_seed(number)
        reals = torch.randint(0, 256, (size, 3, 32, 32), generator=random, dtype=torch.uint8)
        step.step(reals[step.share.rows(size)])
    return step


def trained(objective: str, critic_norm: str, share: Share, **changes: object) -> dict[str, torch.Tensor]:
    """The state after some batches, in which both networks have stepped."""
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm=critic_norm)
    options = StepOptions(
        objective=objective,
        batch_size=BATCH,
        n_critic=2,
        penalty_every=2,
        augment=["color", "translation"],
        mirror=True,
        sync_batch_norm=True,
        **changes,
    )
    return weights(fit(GanStep(networks, options, share=share, float64=True), range(BATCHES), BATCH))


def resumed(share: Share, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The state without and with an interruption. Three ranks add up in an order that matters."""
    networks = NetworkSettings(image_size=32, z_dim=8, width=16)
    options = StepOptions(batch_size=6, n_critic=1, penalty_every=2, sync_batch_norm=True, precision="fp32")
    whole = fit(GanStep(networks, options, share=share), range(7), 6)
    save_training(folder, fit(GanStep(networks, options, share=share), range(3), 6), {})
    again = GanStep(networks, options, share=share)
    load_training(folder, again)
    return [weights(whole), weights(fit(again, range(3, 7), 6))]


def one_rank(rank: int, folder: str) -> None:
    """Everything that several ranks do: three at first, then two of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/three", rank=rank, world_size=3)
    torch.save(resumed(Share(rank, 3), Path(folder, f"saved-{rank}")), f"{folder}/resumed-{rank}.pt")
    dist.destroy_process_group()
    if rank < 2:
        dist.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2)
        found = {case: trained(*case, Share(rank, 2)) for case in CASES}
        torch.save(
            found | {way: trained(*CASES[0], Share(rank, 2), **WAYS[way]) for way in WAYS}, f"{folder}/{rank}.pt"
        )
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(one_rank, 3, str(made))
    return made


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], dict[str, torch.Tensor]]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_three_ranks_resume_as_if_they_had_not_been_interrupted(folder):
    whole, again = torch.load(folder / "resumed-0.pt")
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("case", CASES)
def test_ranks_have_equal_weights(ranks, case):
    for name, value in ranks[0][case].items():
        if case[1] != "batch" or "running" not in name:  # a critic's batch norm sees its own rank's images
            assert torch.equal(value, ranks[1][case][name]), name


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "batch"])
def test_two_ranks_step_as_one_process(ranks, case):
    # The exit's bias cancels between reals and fakes in relativistic and Wasserstein losses: its gradient is rounding,
    # whose sign Adam turns into a whole step.
    for name, value in trained(*case, Share()).items():
        if name != "critic.exit.bias" or case[0] == "dcgan":
            torch.testing.assert_close(ranks[0][case][name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_gradients_in_pieces_are_summed_to_the_same(ranks):
    for name, value in ranks[0][CASES[0]].items():
        torch.testing.assert_close(ranks[0]["pieces"][name], value, rtol=1e-9, atol=1e-12, msg=name)
        assert torch.equal(ranks[0]["pieces"][name], ranks[1]["pieces"][name]), name


def test_gradients_in_bf16_are_summed_with_its_rounding(ranks):
    """Adam's step is a ratio of gradients, so an error of a 256th in each moves a weight by that share of a step."""
    start = weights(GanStep(NetworkSettings(image_size=32, z_dim=8, width=4), StepOptions(), float64=True))
    moved = {name: value - start[name] for name, value in ranks[0][CASES[0]].items() if name.endswith("weight")}
    error = {name: ranks[0]["bf16"][name] - ranks[0][CASES[0]][name] for name in moved}
    steps, errors = (torch.cat([value.flatten() for value in each.values()]).norm() for each in (moved, error))
    assert 0 < errors < 0.05 * steps
    for name in moved:
        assert torch.equal(ranks[0]["bf16"][name], ranks[1]["bf16"][name]), name
