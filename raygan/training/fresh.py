"""Finished generators measured afresh, on samples and photos that chose no checkpoint.

The KIDs by which a training picks its best checkpoint flatter that checkpoint, since it is the minimum of several noisy
numbers. Measured again on other samples and on the validation photos that were held back, the number is unbiased, and
can be compared with another generator's. A second network, which chose nothing either, measures them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from raygan.data.photos import Photos
from raygan.errors import RayganError
from raygan.metrics.distances import kid, kid_difference
from raygan.models.features import Features
from raygan.models.gan import Generator
from raygan.models.registry import DEFAULT_FEATURES, SECOND_FEATURES
from raygan.runtime import capacity, cluster
from raygan.tracking.networks import load_network
from raygan.training.monitor import can_hold_back, draw, features_of, held_back, patience_s

#: Seed of the samples. The monitor, whose numbers choose the checkpoint, draws with seed 1.
_SEED = 2

#: Measured with an error: the value and its standard error.
Estimate = tuple[float, float]


@dataclass(frozen=True)
class Fresh:
    """Generators measured on the same photos, by the same network and on fresh samples.

    Attributes:
        metric: full name of the KID, such as ``kid500_efficientnet_lite0``.
        photos: validation photos that were held back from choosing; all of them if there are too few to hold any back.
        kids: of each generator.
        leads: the KID of each generator minus that of the first, with the error of the difference.
    """

    metric: str
    photos: int
    kids: tuple[Estimate, ...]
    leads: tuple[Estimate, ...]


def measure_fresh(
    generators: Sequence[Generator], photos: Photos, networks: Sequence[str], samples: int, cores: float = 1.0
) -> list[Fresh]:
    """Measure generators in a Ray task, by each network.

    The task reserves nothing. A job that waits for cores takes those of a training as soon as it ends, and keeps them
    for hours; the result's promotion must not depend on that.

    Args:
        generators: on the CPU, in evaluation mode.
        photos: the validation photos.
        networks: feature networks, as workers load them.
        samples: to draw from each generator.
        cores: that the task computes on.

    Raises:
        RayganError: the measurement failed, or took too long.
    """
    measuring = ray.remote(_measure).options(num_cpus=0)
    task = measuring.remote(list(generators), photos, networks, samples, cores)
    patience = patience_s((samples * len(generators) + len(photos)) * len(networks))
    try:
        found: list[Fresh] = ray.get(task, timeout=patience)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        raise RayganError(f"measuring fresh samples took more than {patience / 60:.0f} minutes") from None
    except ray.exceptions.RayError as error:
        raise cluster.failure(error) from None
    return found


def judges(network: str) -> list[str]:
    """The network by which a checkpoint was chosen, and another one, as workers load them."""
    return [network, DEFAULT_FEATURES if network == SECOND_FEATURES else SECOND_FEATURES]


def fresh_metrics(found: Sequence[Fresh]) -> dict[str, float]:
    """The last generator's KIDs and their standard errors by name, prefixed ``fresh_``."""
    metrics: dict[str, float] = {}
    for one in found:
        metrics[f"fresh_{one.metric}"], metrics[f"fresh_{one.metric}_error"] = one.kids[-1]
    return metrics


def fair_metrics(found: Sequence[Fresh]) -> dict[str, float]:
    """`fresh_metrics`, which it also prints."""
    said = ", ".join(f"{one.metric} {one.kids[-1][0]:.3g} ± {one.kids[-1][1]:.2g}" for one in found)
    print(f"measured again on fresh samples and {found[0].photos} photos that did not choose it: {said}", flush=True)
    return fresh_metrics(found)


def _measure(
    generators: Sequence[Generator], photos: Photos, networks: Sequence[str], samples: int, cores: float
) -> list[Fresh]:
    capacity.use_cores(cores)
    return [_measured_by(load_network(network), generators, photos, samples) for network in networks]


def _measured_by(net: Features, generators: Sequence[Generator], photos: Photos, samples: int) -> Fresh:
    real, classes = features_of(photos, net)
    if can_hold_back(len(classes)):
        held = held_back(classes)
        real, classes = real[held], classes[held]
    fakes = [net(draw(generator, samples, seed=_SEED, like=classes)) for generator in generators]
    return Fresh(
        metric=f"kid{samples}_{net.name}",
        photos=len(real),
        kids=tuple(kid(real, fake) for fake in fakes),
        leads=tuple(kid_difference(real, fake, fakes[0]) for fake in fakes),
    )
