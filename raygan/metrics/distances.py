"""How far a set of generated images is from a set of real ones, by their feature vectors.

torch-fidelity computes FID, KID, precision and recall, and matches the reference implementations numerically. This
module validates the input and adds KID's standard error. It imports torch-fidelity only to compute, since that takes
seconds, and drivers need only the names here. Features are float tensors (n, d) of any network, on the CPU. A number
means nothing without the network's name and the number of images.

Every function but `nearest` raises RayganError if a set has too few images or a feature is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raygan.errors import RayganError

#: Images that KID needs in each set: two halves of at least two images.
KID_LEAST = 4

#: With fewer images FID is visibly biased upwards (Chong and Forsyth 2019, arXiv 1911.07023): compare only numbers of
#: the same sample size, and trust KID more.
FID_STEADY = 10_000

#: A photo's ball reaches to its k-th neighbor; k as in the papers, for precision and recall (Kynkaanniemi et al. 2019,
#: arXiv 1904.06991) and for density and coverage (Naeem et al. 2020, arXiv 2002.09797).
PRECISION_NEIGHBORS, COVERAGE_NEIGHBORS = 3, 5

#: Images that each set needs for every function here.
LEAST = COVERAGE_NEIGHBORS + 1

#: Images in a subset of KID, at most.
_SUBSET = 500

#: Random halves from which `kid_difference` gets its error.
_HALVES = 400

#: Rows of a matrix of all pairs that are in memory at a time.
_ROWS = 1000


def kid(real: Tensor, fake: Tensor, *, subsets: int = 50) -> tuple[float, float]:
    """Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401) and its standard error.

    The unbiased squared MMD with the kernel (x.y / d + 1)^3, averaged over random subsets. It can be below 0, which
    means that no difference is visible.

    The standard error is that of the delete-d jackknife (Shao and Wu 1989): over subsets of b out of n images the
    estimate spreads sqrt((n - b) / b) times as much as from one set of n images to another. It is right if the sets
    differ, and too wide, by at most sqrt(1 + n / b), if they don't.

    Args:
        real: (n, d), n at least `KID_LEAST`.
        fake: (m, d), m at least `KID_LEAST`.
        subsets: number of subsets, of at most half of the smaller set, so that they differ.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    _check(real, fake, KID_LEAST, "KID")
    smaller = min(len(real), len(fake))
    size = min(_SUBSET, smaller // 2)
    # float64: the distance is a small difference of large sums.
    found = kid_features_to_metric(
        fake.double(),
        real.double(),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=0,
        verbose=False,
    )
    spread = found[KEY_METRIC_KID_STD]
    from_images = spread**2 * size / (smaller - size)
    from_subsets = spread**2 / subsets
    return found[KEY_METRIC_KID_MEAN], (from_images + from_subsets) ** 0.5


def kid_difference(real: Tensor, first: Tensor, second: Tensor) -> tuple[float, float]:
    """The KID of one set of fakes minus that of another, against the same reals, and the difference's standard error.

    The part of the KID that depends on the reals alone cancels, and so does most of what their choice adds to each
    KID: the error is smaller than that of two independent KIDs. It is the spread over random halves of the three sets,
    which equals the standard error of a mean over a whole set (McCarthy 1969, balanced half-samples). As for `kid`, it
    is too wide if the sets don't differ.

    Args:
        real: (n, d), n at least `KID_LEAST`.
        first: (m, d), m at least `KID_LEAST`.
        second: (k, d), k at least `KID_LEAST`.
    """
    _check(real, first, KID_LEAST, "KID")
    _check(real, second, KID_LEAST, "KID")
    random = torch.Generator().manual_seed(0)
    rows = _halves(len(real), random)
    terms = [_fake_terms(real.double(), fake.double(), rows, random) for fake in (first, second)]
    difference = terms[0] - terms[1]  # the first of them is over all images
    return float(difference[0]), float(difference[1:].std())


def _halves(count: int, random: torch.Generator) -> Tensor:
    """A row of ones, for all of `count` images, and rows that mark random halves with ones: (1 + _HALVES, count)."""
    chosen = torch.rand(_HALVES, count, generator=random).argsort(1) < count // 2
    return torch.cat([torch.ones(1, count), chosen]).double()


def _fake_terms(real: Tensor, fake: Tensor, rows: Tensor, random: torch.Generator) -> Tensor:
    """What depends on the fakes in the unbiased squared MMD, for each half: float64 (1 + _HALVES,)."""
    columns = _halves(len(fake), random)
    reals, fakes = rows.sum(1), columns.sum(1)
    # An image is not compared with itself.
    within = _kernel_sums(fake, fake, columns, columns) - columns @ _kernel((fake * fake).sum(1), fake.shape[1])
    return within / (fakes * (fakes - 1)) - 2 * _kernel_sums(real, fake, rows, columns) / (reals * fakes)


def _kernel_sums(first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For each pair of a row and a column of marks, the sum of the kernel over the images that they mark."""
    parts = zip(first.split(_ROWS), rows.split(_ROWS, 1), strict=True)
    weighted = sum(marks @ _kernel(part @ second.T, second.shape[1]) for part, marks in parts)
    sums: Tensor = (weighted * columns).sum(1)
    return sums


def _kernel(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1) ** 3


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet Inception Distance (Heusel et al. 2017, arXiv 1706.08500), in float64; 0 for identical sets.

    If a set has fewer images than features have dimensions, its covariance is singular and the bias is large.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    _check(real, fake, 2, "FID")
    # The order decides the last bits: torch-fidelity multiplies the covariances in the order it gets them.
    found = fid_statistics_to_metric(
        fid_features_to_statistics(fake.double()), fid_features_to_statistics(real.double()), verbose=False
    )
    return float(found[KEY_METRIC_FID])


def precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Share of fakes among the reals (precision) and of reals among the fakes (recall), each 0 to 1.

    An image is among a set if it lies in the ball around some image of that set that reaches to its third neighbor.
    Features are scaled to unit length first. Otherwise noise would have a precision of 1: a network that recognizes
    nothing gives short vectors, and they lie within the wide balls of a few odd photos.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check(real, fake, PRECISION_NEIGHBORS + 1, "precision and recall")
    found = prc_features_to_metric(
        F.normalize(fake, dim=1),
        F.normalize(real, dim=1),
        prc_neighborhood=PRECISION_NEIGHBORS,
        prc_batch_size=10_000,
        save_cpu_ram=max(len(real), len(fake)) > 10_000,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def density_coverage(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Density (0 and up, 1 for reals) and coverage (0 to 1) of the fakes.

    Density is the number of reals' balls that a fake lies in, over the expected 5. Unlike precision it forgives
    outliers among the reals. Coverage is the share of reals whose ball holds a fake. Features are scaled to unit
    length, as for precision. torch-fidelity has neither metric.
    """
    k = COVERAGE_NEIGHBORS
    _check(real, fake, k + 1, "density and coverage")
    real, fake = F.normalize(real, dim=1), F.normalize(fake, dim=1)
    inside_of = torch.zeros(len(fake))
    covered = []
    for part in real.split(1000):
        # k + 1: the nearest of all is the photo itself.
        radii = torch.cdist(part, real).kthvalue(k + 1, dim=1).values
        inside = torch.cdist(part, fake) <= radii[:, None]
        inside_of += inside.sum(0)
        covered.append(inside.any(1))
    return float(inside_of.mean() / k), float(torch.cat(covered).float().mean())


def diversity(features: Tensor) -> float:
    """Mean cosine distance between two images of a set, 0 to 2; 0 if all are the same."""
    _check(features, features, 2, "diversity")
    unit = F.normalize(features.double(), dim=1)
    count = len(unit)
    return float(1 - (unit.sum(0).square().sum() - count) / (count * (count - 1)))


def nearest(features: Tensor, among: Tensor, *, itself: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest neighbor of each vector, by cosine distance.

    Args:
        features: (n, d).
        among: (m, d), the possible neighbors.
        itself: the two sets are the same, and a vector is not its own neighbor.

    Returns:
        The distances (n,) and the neighbors' indices (n,).
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
    """Raise RayganError unless both sets have at least `least` vectors, all finite and of the same length."""
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (n, d) with the same d, not {tuple(real.shape)} and {tuple(fake.shape)}")
    for name, features in (("real", real), ("generated", fake)):
        if len(features) < least:
            raise RayganError(f"{metric} needs at least {least} {name} images, not {len(features)}")
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        if bad:
            raise RayganError(f"{metric}: the features of {bad} of {len(features)} {name} images are not finite")
