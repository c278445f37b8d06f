"""Whole steps over ranks, for every objective, against one process that has all of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings
from raygan.training.checkpoints import load_training, save_training
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep

#: An uneven share: two ranks of two and three images.
BATCH, BATCHES = 5, 4

CASES = [("wgan-gp", "instance"), ("dcgan", "none"), ("dcgan", "batch"), ("r3gan", "none")]


def trained(objective: str, critic_norm: str, share: Share) -> dict[str, torch.Tensor]:
    """The weights after some batches, in which both networks have stepped."""
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm=critic_norm)
    options = StepOptions(
        objective=objective,
        batch_size=BATCH,
        n_critic=2,
        penalty_every=2,
        augment=["color", "translation"],
        mirror=True,
        sync_batch_norm=True,
    )
    step = GanStep(networks, options, share=share, float64=True)
    random = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        reals = torch.randint(0, 256, (BATCH, 3, 32, 32), generator=random, dtype=torch.uint8)
        step.step(reals[share.rows(BATCH)])
    networks_of = {"critic": step.critic, "generator": step.generator, "ema": step.ema.module}
    return {
        f"{name}.{part}": parameter.detach().clone()
        for name, network in networks_of.items()
        for part, parameter in network.named_parameters()
    }


def _one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({case: trained(*case, Share(rank, 2)) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _resumed(rank: int, folder: str) -> None:
    """Three ranks, which add up in an order that matters, with and without an interruption."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    networks = NetworkSettings(image_size=32, z_dim=8, width=16)
    options = StepOptions(batch_size=6, n_critic=1, penalty_every=2, sync_batch_norm=True, precision="fp32")

    def fit(step: GanStep, batches: range) -> GanStep:
        for number in batches:
            reals = torch.randint(
                0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
            )
            step.step(reals[step.share.rows(6)])
        return step

    whole = fit(GanStep(networks, options, share=Share(rank, 3)), range(7))
    save_training(Path(folder, f"saved-{rank}"), fit(GanStep(networks, options, share=Share(rank, 3)), range(3)), {})
    again = GanStep(networks, options, share=Share(rank, 3))
    load_training(Path(folder, f"saved-{rank}"), again)
    fit(again, range(3, 7))
    torch.save(
        [step.critic.state_dict() | step.generator.state_dict() for step in (whole, again)], f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_three_ranks_go_on_as_if_they_had_never_been_interrupted(tmp_path):
    spawn(_resumed, (str(tmp_path),), 3)
    whole, again = torch.load(tmp_path / "0.pt")
    for name, weights in whole.items():
        assert torch.equal(weights, again[name]), name


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(_one_rank, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_alike(ranks, case):
    for name, weights in ranks[0][case].items():
        assert torch.equal(weights, ranks[1][case][name]), name


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "batch"])  # a batch norm sees its rank's images
def test_two_ranks_step_as_one_process(ranks, case):
    # The exit's bias cancels between reals and fakes in both relativistic and Wasserstein losses: rounding, whose sign
    # Adam makes a whole step of.
    alone = trained(*case, Share())
    for name, weights in alone.items():
        if name != "critic.exit.bias" or case[0] == "dcgan":
            torch.testing.assert_close(ranks[0][case][name], weights, rtol=1e-6, atol=1e-9, msg=name)
