"""A model of how training scales beyond this machine.

Training is data parallel: every worker computes its share of the batch, then all sum their gradients in a
ring, where each sends 2 (w - 1) / w of the gradient's bytes in 2 (w - 1) messages (Patarasuk and Yuan 2009). An
iteration of n critic steps and a generator step over w workers with b images each takes

    n compute_critic(b) + compute_generator(b) + sum over steps of 2 (w - 1) (bytes / w / bandwidth + latency)
    + sum over batch norms and their passes of (w - 1) latency

with compute(b) = fixed + slope b, fitted by least squares to the seconds of an iteration at several b in one worker of
one core (or GPU). Batch norms over all ranks gather their statistics in the critic steps and in the generator's, and
sum their gradients in the latter; those are small, so only the latency of their messages counts.

The model assumes that sums don't overlap with the backward pass, that each gradient is summed in one piece, that all
workers are alike and wait for nothing else, and that all links have the same bandwidth. Its prediction for two workers
here, with gloo's bandwidth and latency measured between two processes, stands beside what two workers did.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch

from raygan.benchmarks.processes import in_processes
from raygan.models.sync_norm import SyncBatchNorm2d
from raygan.training.step import GanStep

#: The efficiency below which more workers don't pay.
WORTH = 0.5

#: The most workers that the model considers.
MOST = 4096

#: Bytes of the sum that measures gloo's bandwidth.
_LARGE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Link:
    """What connects two workers: bytes/s in each direction, and the seconds of the shortest message."""

    bandwidth: float
    latency: float


#: Links for which the model is evaluated.
LINKS = {
    "1 Gbit/s Ethernet": Link(1e9 / 8, 100e-6),
    "10 Gbit/s Ethernet": Link(10e9 / 8, 50e-6),
    "100 Gbit/s InfiniBand": Link(100e9 / 8, 5e-6),
    "NVLink, 450 GB/s": Link(450e9, 3e-6),
}


@dataclass(frozen=True)
class Cost:
    """The model of this module's docstring.

    Attributes:
        fixed: seconds of a batch of reals in one worker, with its share of a generator step, apart from the images.
        slope: seconds of each image in the batch.
        critic_bytes: bytes of the critic's gradients.
        generator_bytes: bytes of the generator's gradients.
        n_critic: critic steps per generator step.
        norms: number of batch norms over all ranks in the generator.
    """

    fixed: float
    slope: float
    critic_bytes: int
    generator_bytes: int
    n_critic: int
    norms: int = 0

    def seconds(self, workers: int, images: float, link: Link) -> float:
        """Seconds of a batch of reals, of which each worker has `images`."""
        sums = 1 + 1 / self.n_critic
        sent = (self.critic_bytes + self.generator_bytes / self.n_critic) / workers / link.bandwidth
        gathered = self.norms * (1 + 2 / self.n_critic)
        messages = (2 * sums + gathered) * (workers - 1)
        return self.fixed + self.slope * images + 2 * (workers - 1) * sent + messages * link.latency

    def efficiency(self, workers: int, batch: int, link: Link, *, weak: bool) -> float:
        """Speed over that of one worker times their number. `batch` is for all workers, or if weak for each."""
        share, work = (batch, 1) if weak else (batch / workers, workers)
        return self.seconds(1, batch, link) / (work * self.seconds(workers, share, link))

    def most_workers(self, batch: int, link: Link, *, weak: bool) -> int:
        """The largest power of two of workers that is efficient enough, with at least an image each."""
        limit = MOST if weak else min(MOST, batch)
        most = 1
        while 2 * most <= limit and self.efficiency(2 * most, batch, link, weak=weak) >= WORTH:
            most *= 2
        return most


def line_through(seconds: dict[int, float]) -> tuple[float, float]:
    """Seconds of any batch and of each image in it, by least squares on the seconds by batch size."""
    slope, fixed = np.polyfit(list(seconds), list(seconds.values()), 1)
    return max(0.0, float(fixed)), float(slope)  # noise can put it below 0


def messages(step: GanStep) -> tuple[int, int, int, int]:
    """critic_bytes, generator_bytes, n_critic and norms of `Cost`."""
    critic, generator = (sum(4 * p.numel() for p in network.parameters()) for network in (step.critic, step.generator))
    norms = sum(isinstance(module, SyncBatchNorm2d) for module in step.generator.modules())
    return critic, generator, step.options.n_critic, norms


def measure_gloo() -> Link:
    """Measure gloo's link between two processes of this machine."""
    with tempfile.TemporaryDirectory(prefix="raygan-gloo-") as folder:
        place = f"file://{folder}/meet"
        (small, large), _ = in_processes("two processes joined by gloo", [(_sum, (rank, place)) for rank in range(2)])
    # Each of the two workers sends two messages with half of the bytes each.
    return Link(_LARGE_BYTES / (large - small), small / 2)


def _sum(rank: int, place: str) -> list[float]:
    """Seconds of a small and of a large sum over two processes."""
    torch.set_num_threads(1)
    waits = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=waits)
    found = []
    for numbers, times in ((1, 200), (_LARGE_BYTES // 4, 10)):
        values = torch.zeros(numbers)
        torch.distributed.all_reduce(values)
        began = time.perf_counter()
        for _ in range(times):
            torch.distributed.all_reduce(values)
        found.append((time.perf_counter() - began) / times)
    torch.distributed.destroy_process_group()
    return found
