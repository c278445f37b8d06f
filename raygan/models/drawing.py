"""A generator as the service runs it, so that a seed gives the same pixels in service, jobs, Python and MLflow.

Rounding differs between forms of a network, sizes of a batch and numbers of threads, and a pixel on the edge between
two gray levels shows it. So every caller runs the fast form in batches of one size, each on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from raygan.models.fuse import fast_network
from raygan.models.gan import Generator, to_uint8
from raygan.models.latents import latents_of

#: A network: tensors with rows in their first dimension to one such tensor.
Compute = Callable[..., Tensor]

#: Images of a batch: at twice the size a lone image takes almost twice as long.
BATCH = 16


class Drawing:
    """Draws images of a generator.

    Attributes:
        generator: the original.
        device: where it computes.
    """

    def __init__(self, generator: Generator, device: torch.device | str = "cpu"):
        """Make the fast form.

        Args:
            generator: on the CPU, in evaluation mode.
            device: where to compute.
        """
        self.generator, self.device = generator, torch.device(device)
        self._threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._network = fast_network(generator, self.example(BATCH), self.device)

    def example(self, count: int) -> list[Tensor]:
        """Inputs of the network: latents (count, z_dim), and classes (count,) of a conditional generator."""
        latents = latents_of(range(count), self.generator.settings.z_dim)
        labels = self.generator.labels
        return [latents, torch.arange(count) % len(labels)] if labels else [latents]

    @torch.inference_mode()
    def compute(self, *inputs: Tensor) -> Tensor:
        """One batch: uint8 images (n, S, S, 3) of latents (n, z_dim) and, if conditional, classes (n,)."""
        images = self._network(*(column.to(self.device) for column in inputs))
        return to_uint8(images).permute(0, 2, 3, 1).cpu().contiguous()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Any number of images; inputs and result as for `compute`."""
        if not len(inputs[0]):
            size = self.generator.settings.image_size
            return torch.empty(0, size, size, 3, dtype=torch.uint8)
        batches = list(zip(*(column.split(BATCH) for column in inputs), strict=True))
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(min(self._threads, len(batches)), "draw", torch.set_num_threads, (1,)) as pool:
                return torch.cat(list(pool.map(self._padded, batches)))
        finally:
            torch.set_num_threads(before)  # torch shares some of it between threads

    def of_latents(self, latents: Tensor, label: str | None = None) -> Tensor:
        """Images of one label, uint8 (n, S, S, 3), of latents (n, z_dim). The label counts if there are several."""
        labels = self.generator.labels
        if not labels:
            return self(latents)
        return self(latents, torch.full((len(latents),), labels.index(str(label))))

    def of_seeds(self, seeds: Iterable[int], label: str | None = None, truncation: float = 1.0) -> Tensor:
        """Images of one label, uint8 (n, S, S, 3), of seeds, their latents scaled by `truncation`, above 0 to 1."""
        return self.of_latents(latents_of(seeds, self.generator.settings.z_dim) * truncation, label)

    def _padded(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return compute_padded(self.compute, inputs, BATCH)


def compute_padded(compute: Compute, inputs: Sequence[Tensor], rows: int) -> Tensor:
    """The result of a batch that is filled up to `rows` rows by repeating its last one, without the added rows."""
    own = len(inputs[0])
    if rows > own:
        inputs = [torch.cat([column, column[-1:].expand(rows - own, *column.shape[1:])]) for column in inputs]
    return compute(*inputs)[:own]
