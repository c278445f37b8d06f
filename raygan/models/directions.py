"""Directions among the latents in which a generator's images change most (SeFa).

Closed-form factorization (Shen and Zhou 2021, arXiv 2007.06600): the first layer multiplies latents by a matrix A, and
the unit vectors n that maximize |A n|, the eigenvectors of A^T A, are those that the layer passes on most strongly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raygan.errors import ConfigurationError
from raygan.models.gan import Generator


def directions(generator: Generator, count: int) -> Tensor:
    """The strongest directions: float32 (count, z_dim), unit vectors, the strongest first.

    Raises:
        ConfigurationError: there are fewer, or the first layer is of a kind that has none.
    """
    z_dim = generator.settings.z_dim
    if not 1 <= count <= z_dim:
        raise ConfigurationError(f"a generator with z_dim {z_dim} has 1 to {z_dim} directions, not {count}")
    matrix = _first_layer(generator)[:z_dim].double()  # of a conditional generator, classes follow the latents
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)  # eigenvalues ascend
    strongest = vectors.T.flip(0)[:count]
    # An eigenvector's sign is arbitrary; this one is the same on every machine.
    signs = strongest.gather(1, strongest.abs().argmax(1, keepdim=True)).sign()
    found: Tensor = (strongest * signs).float()
    return found


def _first_layer(generator: Generator) -> Tensor:
    """The first layer's matrix, a row for each input."""
    for module in generator.modules():
        if isinstance(module, nn.ConvTranspose2d) and module.groups == 1:
            return module.weight.detach().flatten(1)
        if isinstance(module, nn.Linear):
            return module.weight.detach().T
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            return module.weight.detach().transpose(0, 1).flatten(1)
    raise ConfigurationError(f"the architecture {generator.settings.architecture} has no first layer to find them in")
