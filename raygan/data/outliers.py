"""Outliers: photos unlike all others of their class, such as crops without a face.

A photo's score is its mean cosine distance to its 5 nearest neighbors of the same label, in the features of an
ImageNet network (`raygan.models.features`). Photos that are ordinary in one of many ways (black cats, kittens in
cages) have near neighbors; a wall, a paw or a man doesn't.

The threshold comes from the data. In clean classes, the logarithms of scores are nearly normally distributed, so the
threshold is the median plus some (by default 3) standard deviations, estimated from the median absolute deviation,
which outliers don't inflate. A clean class loses about 1 photo in 700.

The filter misses outliers that come in numbers (six photos of the same wall are each other's neighbors, unless they
are near-duplicates) and photos that are partly right (an eye, a muzzle, a profile), which score near the threshold.

Up to `EXACT` photos of a label are all compared with each other, in tasks that score `PART` photos each and hold twice
as many vectors at a time. That takes n² d multiplications for vectors of d = 512 numbers: 3,000 photos take 0.2 s on
one core. Of more, `EXACT` evenly spread ones stand for all, so cost grows linearly. Scores are then higher, as
neighbors are fewer, and so is the threshold; a kind of photo of which a label has only a few in a million may look like
an outlier. The loss, as average precision against the exact verdicts: on 1,542 cat faces, 54 of them
outliers, 0.998, 0.992 and 0.997 if a half, a quarter or an eighth of the faces stand for all; on 1,304 dog faces 0.51,
0.29 and 0.15, and no other number of neighbors does better. No dog is clearly an outlier: the 20 that score
above 2 deviations exceed the threshold by 4 % in the median, the cats by 18 %, so small changes of the scores reorder
them.

The network itself costs more, about 100 photos per second and core.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raygan.runtime.storage import local_folder

#: Length of the stored vectors: a random projection of the network's 1280 features that ranks outliers as well as
#: they do (average precision 0.93 on labeled crops with and without it); 256 would be worse.
DIM = 512

#: Labels with fewer photos are skipped: their scores don't support a verdict.
MIN_PHOTOS = 100

#: A photo this close to its neighbors (mean cosine distance) is no outlier, however similar the others are.
NEAR = 0.05

#: Neighbors that a photo is compared with.
NEIGHBORS = 5

#: Photos that a task scores, and vectors that it compares them with at a time.
PART = 20_000

#: Up to this many photos of a label are all compared with each other. Scoring one photo against so many takes one core
#: 0.9 ms, a tenth of what the network takes.
EXACT = 100_000


def embedder(network: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels, uint8 (n, S, S, 3), to stored vectors, float16 (n, DIM), that uses one thread.

    Args:
        network: from `raygan.tracking.networks.feature_network`, which would import MLflow into every worker.
    """
    import torch

    from raygan.models.features import load_features

    # Tasks already run on all cores; more threads would only compete.
    torch.set_num_threads(1)
    features = load_features(local_folder(network))

    def embed(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return project(features(images).numpy())

    return embed


def project(features: np.ndarray) -> np.ndarray:
    """Features, float32 (n, d), scaled to unit length and projected, always in the same way, to float16 (n, DIM)."""
    random = np.random.default_rng(0).standard_normal((features.shape[1], DIM), dtype=np.float32)
    if len(features) == 1:  # alone, it would be multiplied in another order, and rounded differently
        return project(np.repeat(features, 2, axis=0))[:1]
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    projected: np.ndarray = (features / np.maximum(lengths, 1e-12)) @ random / DIM**0.5
    return projected.astype(np.float16)


def scores(vectors: np.ndarray, others: np.ndarray | None = None, own: np.ndarray | None = None) -> np.ndarray:
    """Mean cosine distance of each vector to its `NEIGHBORS` nearest others.

    Args:
        vectors: (n, d).
        others: (m, d) those to compare with; by default the vectors themselves.
        own: int (n,), each vector's number among the others; -1 if it isn't among them.

    Returns:
        float32 (n,), 0 to 2.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    unit = _unit(vectors)
    among = vectors if others is None else others
    numbers = np.arange(len(unit)) if own is None else own
    parts = []
    for start in range(0, len(among), PART):
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(_unit(among[start : start + PART]))
        similar, found = index.search(unit, NEIGHBORS + 1)
        parts.append((similar, found + start == numbers[:, None]))
    similar, itself = (np.hstack(columns) for columns in zip(*parts, strict=True))
    if len(parts) > 1:
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, : NEIGHBORS + 1]
        similar, itself = (np.take_along_axis(columns, nearest, 1) for columns in (similar, itself))
    # A vector finds itself, first or among its equals; if it doesn't, its farthest neighbor is left out.
    itself[~itself.any(axis=1), -1] = True
    mean = similar[~itself].reshape(len(unit), NEIGHBORS).mean(axis=1)
    distances: np.ndarray = np.maximum(1 - mean, 1e-6).astype(np.float32)
    return distances


def threshold(values: np.ndarray, deviations: float) -> float:
    """The score above which photos are outliers: median + `deviations` robust standard deviations, in logarithms.

    At least `NEAR`; otherwise rounding errors would decide in a class of copies.
    """
    logs = np.log(values)
    median = np.median(logs)
    return max(NEAR, float(np.exp(median + deviations * 1.4826 * np.median(np.abs(logs - median)))))


def _unit(vectors: np.ndarray) -> np.ndarray:
    import faiss

    unit: np.ndarray = vectors.astype(np.float32)
    faiss.normalize_L2(unit)
    return unit
