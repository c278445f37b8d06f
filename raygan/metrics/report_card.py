"""raygan's own metrics of the report card: how each is computed, which end is good, and what it means."""

from __future__ import annotations

from raygan.metrics.comparison import Comparison
from raygan.metrics.distances import diversity, fid, kid
from raygan.metrics.registry import Metric

#: Share of the real photos that are nearer to another real photo than a sample may be before it counts as a copy.
_COPY_SHARE = 0.01


def _relative_diversity(sets: Comparison) -> float:
    return diversity(sets.fake) / max(diversity(sets.real), 1e-12)


def _train_distance(sets: Comparison) -> float:
    return float(sets.nearest_real[0].mean() / sets.real_spacing.mean().clamp_min(1e-12))


def _copies(sets: Comparison) -> float:
    return float((sets.nearest_real[0] < sets.real_spacing.quantile(_COPY_SHARE)).float().mean())


FID = Metric(
    lambda sets: fid(sets.real, sets.fake),
    "lower",
    "distance between Gaussians fitted to the features; 0 for identical sets",
)
KID = Metric(
    lambda sets: kid(sets.real, sets.fake),
    "lower",
    "kernel distance between the features, unbiased, with its standard error; about 0 for sets that are alike",
)
PRECISION = Metric(
    lambda sets: sets.precision_recall[0],
    "higher",
    "share of samples that lie among the real photos, by features scaled to unit length",
)
RECALL = Metric(
    lambda sets: sets.precision_recall[1],
    "higher",
    "share of real photos that lie among the samples, by features scaled to unit length",
)
DENSITY = Metric(
    lambda sets: sets.density_coverage[0],
    "higher",
    "how densely real photos surround the samples; 1 if as densely as they surround each other",
)
COVERAGE = Metric(lambda sets: sets.density_coverage[1], "higher", "share of real photos with a sample nearby")
DIVERSITY = Metric(_relative_diversity, None, "how much samples differ from each other; 1 if as much as real photos do")
TRAIN_DISTANCE = Metric(
    _train_distance,
    None,
    "mean distance to the nearest real photo; 1 if as far as real photos are from each other, less suggests copying",
)
COPIES = Metric(
    _copies,
    None,
    "share of samples nearer to a real photo than 99 % of real photos are to another; chance gives 1 %",
)
AGREEMENT = Metric(
    None, "higher", "share of samples to which the classifier gives their label; it has to give noise a label, too"
)
CONFIDENCE = Metric(None, "higher", "mean probability that the classifier gives to the label")
ANIMAL_MASS = Metric(
    None, "higher", "mean probability of the label's animals among ImageNet's classes, by the network in the row's name"
)
