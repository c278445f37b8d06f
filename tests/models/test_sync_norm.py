"""Batch normalization over ranks, against torch's on all images in one process."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raygan.models.sync_norm import synchronize
from tests.helpers import run_ranks

ROWS = (3, 0, 2)


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images far from zero, and a gradient on the output."""
    random = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Tanh()).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(4, generator=random))
    images = 1000 + torch.randn(sum(ROWS), 4, 3, 3, generator=random, dtype=torch.float64)
    return network, images, torch.randn(images.shape, generator=random, dtype=torch.float64)


def _one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(ROWS))
    network, images, gradient = _problem()
    synchronize(network)
    rows = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    own = images[rows].requires_grad_()
    output = network(own)
    output.backward(gradient[rows])
    gradients = [parameter.grad for parameter in network.parameters()]
    torch.save([output.detach(), own.grad, gradients, dict(network.named_buffers())], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_unequal_ranks_normalize_as_one_process(tmp_path: Path) -> None:
    run_ranks(_one_rank, len(ROWS), str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(ROWS))]
    network, images, gradient = _problem()
    images.requires_grad_()
    output = network(images)
    output.backward(gradient)
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), output.detach())
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]), images.grad)
    for number, parameter in enumerate(network.parameters()):
        torch.testing.assert_close(sum(rank[2][number] for rank in ranks), parameter.grad)
    for name, buffer in network.named_buffers():
        for rank in ranks:
            torch.testing.assert_close(rank[3][name], buffer)
