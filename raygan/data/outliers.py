"""The filter that finds photos which are unlike all others of their class, such as crops with no face.

A photo's score is its mean cosine distance to its 5 nearest neighbours of the same label, in the features of
an ImageNet network (`raygan.models.features`). Photos that are ordinary in any of many ways (black cats, kittens in
cages) have near neighbours; a wall, a paw or a man has not.

The threshold comes from the data. Logarithms of scores are close to normally distributed in clean classes, so
the line is drawn at the median plus some (3 by default) standard deviations, estimated by the median absolute
deviation, which outliers can't stretch. A clean class loses about 1 in 700 photos.

What it misses: outliers that come in numbers (six photos of the same wall are each other's neighbours, if they
aren't near-duplicates), and photos that are partly right (an eye, a muzzle, a profile), which lie at the line.

Cost for n photos of a label, d = 512 numbers each: up to `EXACT` photos an exact search, n² d
multiplications: 3 thousand take 0.2 s on a core. Beyond, an inverted file of 4 √n lists of which 32 are read
for each photo: about 8 n^1.5 d, seconds for 30 thousand, half an hour on a core for 3 million, and 3 kB of memory
for each photo in one task for each label. All pairs would take days. Far dearer is the network itself, about
100 photos a second on a core, which grows with n and spreads over all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import faiss  # imported where it is used: workers that examine photos do without

#: Length of the stored vectors: a random projection of the network's 1280, which keeps distances well enough to
#: rank outliers the same (average precision 0.93 on labelled crops, with and without); 256 would lose some.
DIM = 512

#: Photos of a label below which the scores have no statistics worth a verdict.
MIN_PHOTOS = 100

#: A photo this near to its neighbours (mean cosine distance) is no outlier, however alike all others are.
NEAR = 0.05

#: Neighbours that a photo is compared with.
NEIGHBOURS = 5

#: Photos of a label up to which the search is exact.
EXACT = 20_000


def embedder(network: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels (n, S, S, 3) uint8 to stored vectors (n, DIM) float16, on one thread.

    network: a name for `raygan.models.features.load_features`, whose errors it raises.
    """
    import torch

    from raygan.models.features import load_features

    # Tasks run beside each other on all cores: more threads would only get in each other's way.
    torch.set_num_threads(1)
    features = load_features(network)

    def embed(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return project(features(images).numpy())

    return embed


def project(features: np.ndarray) -> np.ndarray:
    """Features (n, d) float32 scaled to unit length and projected to (n, DIM) float16, always alike."""
    random = np.random.default_rng(0).standard_normal((features.shape[1], DIM), dtype=np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    projected: np.ndarray = (features / np.maximum(lengths, 1e-12)) @ random / DIM**0.5
    return projected.astype(np.float16)


def scores(vectors: np.ndarray) -> np.ndarray:
    """Mean cosine distance of each vector to its nearest `NEIGHBOURS` others: (n, d) to float32 (n,), 0 to 2."""
    import faiss

    faiss.omp_set_num_threads(1)
    unit = vectors.astype(np.float32)
    faiss.normalize_L2(unit)
    index = _index(unit)
    similar, found = index.search(unit, NEIGHBOURS + 1)
    # A vector finds itself, first or among its equals; of those that don't, the farthest is left out.
    itself = found == np.arange(len(unit))[:, None]
    itself[~itself.any(axis=1), -1] = True
    mean = similar[~itself].reshape(len(unit), NEIGHBOURS).mean(axis=1)
    distances: np.ndarray = np.maximum(1 - mean, 1e-6).astype(np.float32)
    return distances


def threshold(values: np.ndarray, deviations: float) -> float:
    """The score above which photos are outliers: median + `deviations` robust standard deviations, of logs.

    At least `NEAR`, so that a class of copies and hardly changed copies isn't measured by its rounding errors.
    """
    logs = np.log(values)
    median = np.median(logs)
    return max(NEAR, float(np.exp(median + deviations * 1.4826 * np.median(np.abs(logs - median)))))


def _index(unit: np.ndarray) -> faiss.Index:
    import faiss

    flat = faiss.IndexFlatIP(unit.shape[1])
    if len(unit) <= EXACT:
        flat.add(unit)
        return flat
    lists = int(4 * len(unit) ** 0.5)
    index = faiss.IndexIVFScalarQuantizer(
        flat, unit.shape[1], lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = 32
    index.train(unit[: 40 * lists])
    index.add(unit)
    return index
