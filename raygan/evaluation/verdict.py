"""The numbers of each candidate: Ray tasks compare its samples with the real photos, by label and over all labels.

A recorded name consists of the metric's name in `METRICS`, the number of samples and the network, as in
``fid2000_efficientnet_lite2``. Scores of ``inception_v3`` carry no network, as in ``fid2000``, and neither do the
classifier's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from torch import Tensor

from raygan.errors import RayganError, first_line
from raygan.evaluation.candidates import Candidate
from raygan.evaluation.collect import ImageSet, joined
from raygan.metrics.comparison import Comparison
from raygan.metrics.registry import METRICS
from raygan.models.registry import INCEPTION, SECOND_FEATURES
from raygan.runtime import cluster
from raygan.sampling.generators import ALL


@dataclass(frozen=True)
class Score:
    """One number of a verdict.

    Attributes:
        metric: name in `METRICS`.
        name: name in records.
        value: finite for raygan's own metrics.
        error: standard error of the value, if the metric has one.
        network: the feature network's name; None for metrics that compare no features.
    """

    metric: str
    name: str
    value: float
    error: float | None = None
    network: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The report's verdict on a candidate's samples of one label, or of "all".

    Attributes:
        candidate: its name.
        label: the samples' label.
        samples: the samples themselves.
        scores: in the order of the records.
        nearest: index (n,) of each sample's nearest real photo, in the first feature network.
        confidence: the classifier's probability (n,) of the label; None if it doesn't know the label.
    """

    candidate: str
    label: str
    samples: ImageSet
    scores: Sequence[Score]
    nearest: Tensor
    confidence: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """The scores as they are recorded: values and standard errors by name."""
        found = {}
        for score in self.scores:
            found[score.name] = score.value
            if score.error is not None:
                found[f"{score.name}_error"] = score.error
        return found


def measure_all(
    candidates: Sequence[Candidate],
    drawn: Mapping[tuple[str, str], ImageSet],
    reals: Mapping[str, ImageSet],
    classes: Sequence[str],
) -> list[Verdict]:
    """The verdicts on all candidates: one for each label of a candidate, and one for "all" if it draws every label.

    Args:
        candidates: in the order of the table.
        drawn: samples by the candidate's name and the label.
        reals: photos to compare with, by label.
        classes: the classifier's labels.
    """
    compared, sets = dict(reals), dict(drawn)
    # Beside a generator trained on all labels, which draws "all" itself, another "all" would be ambiguous.
    if len(reals) > 1 and ALL not in reals:
        compared[ALL] = joined(list(reals.values()))
        for candidate in candidates:
            if set(candidate.sources) == set(reals):
                sets[candidate.name, ALL] = mixed({label: drawn[candidate.name, label] for label in reals}, reals)
    held = {label: ray.put(real.without_pixels()) for label, real in compared.items()}
    task = ray.remote(measure)
    tasks = {
        (name, label): task.remote(samples.without_pixels(), held[label], label, classes)
        for (name, label), samples in sets.items()
    }
    cluster.wait_for(list(tasks.values()), "comparing", leave=True)
    found = {key: cluster.fetch(measured) for key, measured in tasks.items()}
    for (name, label), (scores, _) in found.items():
        if label == ALL and ALL not in reals:
            count = sum(len(drawn[name, one]) for one in reals)
            scores.extend(_mean_agreement([found[name, one][0] for one in reals], count))
    return [
        Verdict(name, label, samples, scores, nearest, _confidence(samples, label, classes))
        for (name, label), samples in sets.items()
        for scores, nearest in [found[name, label]]
    ]


def mixed(samples: Mapping[str, ImageSet], reals: Mapping[str, ImageSet]) -> ImageSet:
    """As many samples as there are in which the labels have the shares that they have among the real photos.

    In equal parts, the best of generators would differ from photos of which most are cats.
    """
    scale = min(len(samples[label]) / len(real) for label, real in reals.items())
    counts = {label: max(1, round(scale * len(real))) for label, real in reals.items()}
    return joined([samples[label].take(torch.arange(count)) for label, count in counts.items()])


def measure(samples: ImageSet, reals: ImageSet, label: str, classes: Sequence[str]) -> tuple[list[Score], Tensor]:
    """All scores of some samples, and the index (n,) of each sample's nearest real photo in the first network.

    Args:
        samples: n samples; their pixels aren't needed.
        reals: photos to compare with; their pixels aren't needed.
        label: the samples' label, or "all".
        classes: the classifier's labels.

    Raises:
        RayganError: there are too few images, a feature isn't finite, or a metric failed.
    """
    torch.set_num_threads(1)  # tasks run on all cores: more threads would get in each other's way
    scores: list[Score] = []
    nearest = []
    for network, fake in samples.features.items():
        sets = Comparison(reals.features[network], fake)
        scores += compare(sets, network)
        nearest.append(sets.nearest_real[1])
    per_image: dict[str, Tensor] = {}
    confidence = _confidence(samples, label, classes)
    if samples.probabilities is not None and confidence is not None:
        per_image["agreement"] = (samples.probabilities.argmax(1) == classes.index(label)).float()
        per_image["confidence"] = confidence
    scores += [Score(name, f"{name}{len(values)}", float(values.mean())) for name, values in per_image.items()]
    if samples.mass is not None:
        name = f"animal_mass{len(samples.mass)}_{SECOND_FEATURES}"
        scores.append(Score("animal_mass", name, float(samples.mass.mean())))
    return scores, nearest[0]


def compare(sets: Comparison, network: str) -> list[Score]:
    """The scores that all metrics of features give.

    Args:
        sets: features of samples and of real photos.
        network: its name.

    Raises:
        RayganError: there are too few images, a feature isn't finite, or a metric failed.
    """
    suffix = f"{len(sets.fake)}" if network == INCEPTION else f"{len(sets.fake)}_{network}"
    scores = []
    for name, metric in METRICS.items():
        if metric.compare is None:
            continue
        try:
            found = metric.compare(sets)
            value, error = found if isinstance(found, tuple) else (found, None)
            error = None if error is None else float(error)
            scores.append(Score(name, f"{name}{suffix}", float(value), error, network))
        except RayganError:
            raise
        except Exception as failure:  # a package's metric may raise anything
            raise RayganError(f"the metric {name!r} failed: {first_line(failure)}") from failure
    return scores


def _confidence(samples: ImageSet, label: str, classes: Sequence[str]) -> Tensor | None:
    """The probability (n,) that the classifier gives to the label, if it knows it."""
    if samples.probabilities is None or label not in classes:
        return None
    return samples.probabilities[:, classes.index(label)]


def _mean_agreement(of_labels: Sequence[Sequence[Score]], count: int) -> list[Score]:
    """Agreement of `count` samples of all labels: the mean of the labels' own, in which guessing gets 1 / labels."""
    values = [score.value for scores in of_labels for score in scores if score.metric == "agreement"]
    if len(values) < len(of_labels):
        return []
    return [Score("agreement", f"agreement{count}", sum(values) / len(values))]
