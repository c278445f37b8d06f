"""How far a set of generated images is from a set of real ones, by their feature vectors.

The metrics are torch-fidelity's, which match the reference implementations numerically; this module checks what
goes in, and says how sure the numbers are. Features are float tensors (n, d) of any network, on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from raygan.errors import RayganError

#: Images of the smaller set that KID needs: two halves with at least two images each.
KID_LEAST = 4


def kid(
    real_features: Tensor, fake_features: Tensor, *, subsets: int = 50, subset_size: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401) and its standard error.

    The unbiased squared MMD with the kernel (x.y / d + 1)^3, averaged over `subsets` subsets of `subset_size`
    images; below 0 is possible and means: no difference to be seen. A subset takes at most half of the smaller
    set, so that subsets differ.

    The standard error is the delete-d jackknife's (Shao and Wu 1989): subsets of b out of n images spread
    sqrt((n - b) / b) times as much as the estimate itself would from one set of n images to another. It is right
    where the sets differ, and too wide, by sqrt(n / b) at most, where they don't.

    Raises RayganError if a set has fewer than `KID_LEAST` images or a feature is not finite.
    """
    _check(real_features, fake_features, KID_LEAST, "KID")
    smaller = min(len(real_features), len(fake_features))
    size = min(subset_size, smaller // 2)
    # float64: the distance is a small difference of large sums.
    found = kid_features_to_metric(
        fake_features.double(),
        real_features.double(),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    spread = found[KEY_METRIC_KID_STD]
    from_images = spread**2 * size / (smaller - size)
    from_subsets = spread**2 / subsets
    return found[KEY_METRIC_KID_MEAN], (from_images + from_subsets) ** 0.5


def _check(real: Tensor, fake: Tensor, least: int, metric: str) -> None:
    """Raise RayganError unless both sets have enough finite vectors of the same length."""
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (n, d) with the same d, not {tuple(real.shape)} and {tuple(fake.shape)}")
    for name, features in (("real", real), ("generated", fake)):
        if len(features) < least:
            raise RayganError(f"{metric} needs at least {least} {name} images, not {len(features)}")
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        if bad:
            raise RayganError(f"{metric}: the features of {bad} of {len(features)} {name} images are not finite")
