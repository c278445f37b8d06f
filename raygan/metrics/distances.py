"""How far a set of generated images is from a set of real ones, by their feature vectors.

FID, KID, precision and recall are torch-fidelity's, which match the reference implementations numerically; this
module checks what goes in, and says how sure the numbers are. Features are float tensors (n, d) of any network, on
the CPU; a number means nothing without that network's name and the number of images.

Every function raises RayganError if a set has too few images for it, or if a feature is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from raygan.errors import RayganError

#: Images of the smaller set that KID needs: two halves with at least two images each.
KID_LEAST = 4

#: Images below which FID is visibly biased upwards (Chong and Forsyth 2019, arXiv 1911.07023): compare only numbers
#: of the same sample size, and trust KID more.
FID_STEADY = 10_000

#: Neighbours that make a photo's ball: of precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), and of
#: density and coverage (Naeem et al. 2020, arXiv 2002.09797), as the papers have them.
PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5


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

    Each set needs `KID_LEAST` images.
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


class Statistics:
    """Mean and covariance of a set's features, in float64; FID needs nothing else, and reals are measured once."""

    def __init__(self, features: Tensor):
        _check(features, features, 2, "FID")
        self._values = fid_features_to_statistics(features.double())

    def fid(self, features: Tensor) -> float:
        """Frechet Inception Distance (Heusel et al. 2017, arXiv 1706.08500) to another set; 0 is the same set.

        With fewer images than features have numbers the covariances are singular and the bias is large.
        """
        found = fid_statistics_to_metric(Statistics(features)._values, self._values, verbose=False)
        return float(found[KEY_METRIC_FID])


def precision_recall(real_features: Tensor, fake_features: Tensor) -> tuple[float, float]:
    """Share of fakes among the reals (precision) and of reals among the fakes (recall), each 0 to 1.

    "Among" is: within the ball around some image of the other set that reaches to its third neighbour. Features
    are scaled to unit length first: images in which a network sees nothing have short vectors, which lie within
    the wide balls of a few odd photos, so that noise would have a precision of 1.
    """
    _check(real_features, fake_features, PRECISION_NEIGHBOURS + 1, "precision and recall")
    found = prc_features_to_metric(
        F.normalize(fake_features, dim=1),
        F.normalize(real_features, dim=1),
        prc_neighborhood=PRECISION_NEIGHBOURS,
        prc_batch_size=10_000,
        save_cpu_ram=max(len(real_features), len(fake_features)) > 10_000,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def density_coverage(real_features: Tensor, fake_features: Tensor) -> tuple[float, float]:
    """Density (0 and up, 1 for reals) and coverage (0 to 1) of the fakes.

    Density counts in how many reals' balls a fake lies, over the 5 expected, and so forgives outliers among the
    reals, which precision doesn't. Coverage is the share of reals whose ball holds a fake. Features are scaled to
    unit length as for precision. torch-fidelity has neither metric.
    """
    k = COVERAGE_NEIGHBOURS
    _check(real_features, fake_features, k + 1, "density and coverage")
    real_features, fake_features = F.normalize(real_features, dim=1), F.normalize(fake_features, dim=1)
    inside_of = torch.zeros(len(fake_features))
    covered = []
    for part in real_features.split(1000):
        # The nearest of all is the photo itself.
        radii = torch.cdist(part, real_features).kthvalue(k + 1, dim=1).values
        inside = torch.cdist(part, fake_features) <= radii[:, None]
        inside_of += inside.sum(0)
        covered.append(inside.any(1))
    return float(inside_of.mean() / k), float(torch.cat(covered).float().mean())


def diversity(features: Tensor) -> float:
    """Mean cosine distance between two images of a set, 0 to 2; 0 if all are alike."""
    _check(features, features, 2, "diversity")
    unit = F.normalize(features.double(), dim=1)
    count = len(unit)
    return float(1 - (unit.sum(0).square().sum() - count) / (count * (count - 1)))


def nearest(features: Tensor, among: Tensor, *, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Cosine distance (n,) of each vector to the nearest `among` (m, d), and that one's index (n,).

    itself: the two sets are one, and a vector is not its own neighbour.
    """
    unit, others = F.normalize(features, dim=1), F.normalize(among, dim=1)
    distances, indices = [], []
    for start in range(0, len(unit), 1000):
        similar = unit[start : start + 1000] @ others.T
        if itself:
            rows = torch.arange(len(similar))
            similar[rows, start + rows] = -2.0
        closest, index = similar.max(dim=1)
        distances.append(1 - closest)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


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
