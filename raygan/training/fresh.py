"""Finished generators measured on fresh samples: latents by which no checkpoint was chosen.

The KIDs by which a training picks its best checkpoint flatter that checkpoint, since it is the minimum of several noisy
numbers. Measured again on other samples, the number is fair, and fit to be compared with another generator's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from raygan.data.batches import Photos
from raygan.errors import RayganError
from raygan.models.gan import Generator
from raygan.runtime import cluster
from raygan.tracking.networks import load_network
from raygan.training.monitor import draw, features_of

#: Seed of the samples. The monitor, whose numbers choose the checkpoint, draws with seed 1.
_SEED = 2

#: Seconds after which a measurement is given up.
_PATIENCE_S = 900.0

#: Measured with an error: the value and its standard error.
Estimate = tuple[float, float]


@dataclass(frozen=True)
class Fresh:
    """Generators measured on the same photos, by the same network and on fresh samples.

    Attributes:
        metric: full name of the KID, such as ``kid500_efficientnet_lite0``.
        kids: of each generator.
        leads: the KID of each generator minus that of the first, with the error of the difference.
    """

    metric: str
    kids: tuple[Estimate, ...]
    leads: tuple[Estimate, ...]


def measure_fresh(
    generators: Sequence[Generator], photos: Photos, network: str, samples: int, cores: float = 1.0
) -> Fresh:
    """Measure generators in a Ray task.

    Args:
        generators: on the CPU, in evaluation mode.
        photos: held out from the training.
        network: feature network, as workers load it.
        samples: to draw from each generator.
        cores: that the task reserves.

    Raises:
        RayganError: the measurement failed, or took too long.
    """
    task = ray.remote(_measure).options(num_cpus=cores).remote(list(generators), photos, network, samples)
    try:
        found: Fresh = ray.get(task, timeout=_PATIENCE_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        raise RayganError(f"measuring fresh samples took more than {_PATIENCE_S / 60:.0f} minutes") from None
    except ray.exceptions.RayError as error:
        raise cluster.failure(error) from None
    return found


def _measure(generators: Sequence[Generator], photos: Photos, network: str, samples: int) -> Fresh:
    from raygan.metrics.distances import kid, kid_difference  # torch-fidelity takes seconds to import

    torch.set_num_threads(max(1, min(int(_cores()), os.cpu_count() or 1)))
    net = load_network(network)
    real, classes = features_of(photos, net)
    fakes = [net(draw(generator, samples, seed=_SEED, like=classes)) for generator in generators]
    return Fresh(
        metric=f"kid{samples}_{net.name}",
        kids=tuple(kid(real, fake) for fake in fakes),
        leads=tuple(kid_difference(real, fake, fakes[0]) for fake in fakes),
    )


def _cores() -> float:
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
