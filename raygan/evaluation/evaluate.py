"""Evaluate: generators and real shards in, a report card out.

The mental model:

1. Candidates are found by name (`raygan.evaluation.candidates`): generators, and with --baselines real photos, an
   untrained generator and noise.
2. Ray tasks draw each candidate's samples and look at them (`raygan.evaluation.collect`). Features of the real photos
   come from storage if an earlier report has put them there.
3. Further tasks compare each candidate with the reals, label by label and over all labels (`measure`).
4. Nothing is written before everything is known: then the page, the JSON file and MLflow's records, in this order.

Names of metrics between features say the number of samples and the feature network, as in
``fid2000_efficientnet_lite0``; only those of ``inception_v3`` go without a network, as in ``fid2000``. Agreement and
confidence are of the classifier that the record names, animal mass always of the same network.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from torch import Tensor

from raygan import tracking
from raygan.data.batches import load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.evaluation import report
from raygan.evaluation.candidates import Candidate, baselines, find_candidates
from raygan.evaluation.collect import Judges, Look, classifier_at, joined, real_features, start_looking
from raygan.evaluation.settings import EvaluateSettings
from raygan.evaluation.verdict import Reals, Verdict
from raygan.metrics.distances import (
    COVERAGE_NEIGHBOURS,
    FID_STEADY,
    Statistics,
    density_coverage,
    diversity,
    kid,
    nearest,
    precision_recall,
)
from raygan.models.features import INCEPTION, load_features
from raygan.runtime import cluster, storage
from raygan.runtime.runs import recorded
from raygan.sampling.generators import ALL, NamedGenerator
from raygan.tracking.networks import GOOGLENET, feature_network, registered_classifier

#: File name of the numbers, beside the page.
REPORT = "report.json"

#: Images that every metric has enough of.
LEAST = COVERAGE_NEIGHBOURS + 1

#: Share of the real photos whose nearest other photo is nearer than a sample's must be for it to count as a copy.
_COPY_SHARE = 0.01


@dataclass(frozen=True)
class EvaluateResult:
    """Where the report is. metrics: candidate, label, name, value."""

    run_id: str
    folder: str
    metrics: dict[str, dict[str, dict[str, float]]]

    def to_json(self) -> str:
        """The job's last line."""
        page = storage.join(self.folder, report.PAGE)
        return json.dumps({"run_id": self.run_id, "report": page, "metrics": self.metrics})


def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Judge the generators and write the report.

    Raises ConfigurationError or RayganError in one line if something can't be judged; then nothing is written.
    """
    if settings.samples < LEAST:
        raise ConfigurationError(f"--samples: {settings.samples} are too few, at least {LEAST}")
    data = DataSet.open(settings.data)
    tracking.connect(settings)
    cluster.connect(settings)
    candidates = find_candidates(settings, data)
    judges = find_judges(settings)
    name = settings.name or time.strftime("report-%Y%m%d-%H%M%S")
    folder = _folder(settings, name)
    labels = list(dict.fromkeys(label for candidate in candidates for label in candidate.sources))
    photos = {label: real_photos(data, label, settings.real_images) for label in labels}
    features = {
        label: {
            network: real_features(found, network, settings.storage, data.manifest.fingerprint, label)
            for network in judges.networks
        }
        for label, found in photos.items()
    }
    reals = {label: Reals(photos[label], features[label]) for label in labels}
    counts = dict.fromkeys(labels, settings.samples)
    if settings.baselines:
        reals, held_out = _halves(reals, settings.seed)
        counts = {label: min(settings.samples, len(held_out[label])) for label in labels}
        like = next((s for c in candidates for s in c.sources.values() if isinstance(s, NamedGenerator)), None)
        size = data.manifest.image_size
        rows = baselines(labels, held_out, like, size, settings.seed)
        candidates = [rows[0], *candidates, *rows[1:]]
    again = [one for one, times in Counter(candidate.name for candidate in candidates).items() if times > 1]
    if again:
        raise ConfigurationError(f"--model: a folder can't be called {again[0]!r} beside the baseline: rename it")
    _check_enough(reals, counts)
    looks = _look_at_all(candidates, counts, judges, settings.seed)
    verdicts = _measure_all(candidates, looks, reals, judges)
    return _publish(settings, name, folder, data, candidates, verdicts, reals, judges)


def _folder(settings: EvaluateSettings, name: str) -> str:
    """Where the report goes, tried before the work; says if it will replace another."""
    folder = settings.output or storage.join(settings.storage, "reports", name)
    if storage.read_json(storage.join(folder, REPORT)) is not None:
        print(f"the report in {folder} will be replaced", flush=True)
    storage.check_writable(folder)
    return folder


def find_judges(settings: EvaluateSettings) -> Judges:
    """Feature networks and classifier of the settings, as names that tasks can load.

    Raises ConfigurationError if one can't be had: better now than after the samples are drawn.
    """
    folder = storage.absolute(settings.classifier) if settings.classifier else registered_classifier(settings)
    if folder is not None:
        classifier_at(folder)
    names = []
    for name in settings.network:
        if name == GOOGLENET and settings.classifier:
            name = settings.classifier
        elif name == INCEPTION and settings.inception_weights:
            name = f"{INCEPTION}:{storage.absolute(settings.inception_weights)}"
        names.append(feature_network(settings, name, "--network"))
    names = list(dict.fromkeys(names))
    titles = Counter(load_features(name).name for name in names) if len(names) > 1 else Counter()
    for title, times in titles.items():
        if times > 1:
            raise ConfigurationError(f"--network: two of the networks are called {title}: rename one's folder or file")
    return Judges(tuple(names), folder)


def real_photos(data: DataSet, label: str, most: int) -> Tensor:
    """At most so many training photos of a label ("all" is every label), spread evenly over the shards."""
    found = load_photos(data, "train", None if label == ALL else label)
    if not len(found):
        raise RayganError(f"--data: {data.address} has no training photo of {label} to compare with")
    return torch.from_numpy(found.pixels(found.spread(most)))


def _halves(reals: Mapping[str, Reals], seed: int) -> tuple[dict[str, Reals], dict[str, Tensor]]:
    """Half of each label's photos to compare with, and the other half's pixels as the candidate "real photos"."""
    compared, held_out = {}, {}
    for label, real in reals.items():
        order = torch.randperm(len(real.pixels), generator=torch.Generator().manual_seed(seed))
        first, second = order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values
        compared[label] = Reals(real.pixels[first], {name: f[first] for name, f in real.features.items()})
        held_out[label] = real.pixels[second]
    return compared, held_out


def _check_enough(reals: Mapping[str, Reals], counts: Mapping[str, int]) -> None:
    for label, real in reals.items():
        if len(real.pixels) < LEAST:
            raise RayganError(
                f"--data: {len(real.pixels)} photos of {label} are left to compare with; the metrics need {LEAST}"
            )
        if counts[label] < LEAST:
            raise RayganError(
                f"--data: {counts[label]} photos of {label} are left as a baseline; the metrics need {LEAST}"
            )


def _look_at_all(
    candidates: Sequence[Candidate], counts: Mapping[str, int], judges: Judges, seed: int
) -> dict[tuple[str, str], Look]:
    tasks = {
        (candidate.name, label): start_looking(source, label, counts[label], seed, judges)
        for candidate in candidates
        for label, source in candidate.sources.items()
    }
    cluster.wait_for([task for parts in tasks.values() for task in parts], "drawing and looking", leave=True)
    return {key: joined(cluster.fetch(parts)) for key, parts in tasks.items()}


def _measure_all(
    candidates: Sequence[Candidate], looks: Mapping[tuple[str, str], Look], reals: Mapping[str, Reals], judges: Judges
) -> list[Verdict]:
    # Beside a generator of all labels there is no telling whose "all" would be meant.
    everything = _together(list(reals.values())) if len(reals) > 1 and ALL not in reals else None
    classes = classifier_at(judges.classifier).labels if judges.classifier else ()
    jobs: dict[tuple[str, str], tuple[Look, Reals]] = {}
    for candidate in candidates:
        for label in candidate.sources:
            jobs[candidate.name, label] = looks[candidate.name, label], reals[label]
        if everything is not None and set(candidate.sources) == set(reals):
            jobs[candidate.name, ALL] = joined([looks[candidate.name, label] for label in reals]), everything
    held = {label: ray.put(real) for label, real in reals.items()}
    if everything is not None:
        held[ALL] = ray.put(everything)
    measuring = ray.remote(measure)
    tasks = {
        key: measuring.remote(_for_measuring(look), held[key[1]], key[1], classes) for key, (look, _) in jobs.items()
    }
    cluster.wait_for(list(tasks.values()), "comparing", leave=True)
    found = {key: cluster.fetch(task) for key, task in tasks.items()}
    for name, label in jobs:
        if label == ALL and everything is not None:
            found[name, ALL][0].update(_mean_agreement([found[name, one][0] for one in reals]))
    return [
        Verdict(name, label, len(look), metrics, closest, look, _confidence(look, label, classes))
        for (name, label), (look, _) in jobs.items()
        for metrics, closest in [found[name, label]]
    ]


def _mean_agreement(of_labels: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Agreement over all labels: the mean of the labels' own, in which guessing gets 1 / labels."""
    found = [(name, value) for metrics in of_labels for name, value in metrics.items() if name.startswith("agreement")]
    if len(found) < len(of_labels):
        return {}
    count = sum(int(name.removeprefix("agreement")) for name, _ in found)
    return {f"agreement{count}": sum(value for _, value in found) / len(found)}


def _confidence(look: Look, label: str, classes: Sequence[str]) -> Tensor | None:
    """The probability (n,) that the classifier gives to the label, if it knows it."""
    return look.verdicts[:, classes.index(label)] if look.verdicts is not None and label in classes else None


def _for_measuring(look: Look) -> Look:
    """The look without its pixels, which measuring doesn't need."""
    return replace(look, pixels=torch.empty(len(look), 0))


def _together(reals: Sequence[Reals]) -> Reals:
    names = reals[0].features
    return Reals(
        torch.cat([real.pixels for real in reals]),
        {name: torch.cat([real.features[name] for real in reals]) for name in names},
    )


def measure(look: Look, reals: Reals, label: str, classes: Sequence[str]) -> tuple[dict[str, float], Tensor]:
    """All metrics of one look, and the index of each sample's nearest real photo in the first network.

    classes: the classifier's labels. Raises RayganError if there are too few images or features aren't finite.
    """
    torch.set_num_threads(1)
    metrics: dict[str, float] = {}
    count = len(look)
    closest = torch.empty(0, dtype=torch.int64)
    for number, network in enumerate(look.features):
        found, indices = compare(reals.features[network], look.features[network])
        shown = load_features(network).name
        suffix = str(count) if shown == INCEPTION else f"{count}_{shown}"
        metrics |= {_suffixed(name, suffix): value for name, value in found.items()}
        closest = indices if number == 0 else closest
    confidence = _confidence(look, label, classes)
    if look.verdicts is not None and confidence is not None:
        metrics[f"agreement{count}"] = float((look.verdicts.argmax(1) == classes.index(label)).float().mean())
        metrics[f"confidence{count}"] = float(confidence.mean())
    if look.mass is not None:
        metrics[f"animal_mass{count}"] = float(look.mass.mean())
    return metrics, closest


def compare(real: Tensor, fake: Tensor) -> tuple[dict[str, float], Tensor]:
    """The metrics between two sets of features, and the index of each fake's nearest real.

    diversity is in units of the reals' (1 is as diverse), train_distance the mean distance to the nearest real in
    units of the reals' own (below 1 is nearer to them than they are to each other), copies the share of fakes that
    are nearer to a real than all but 1 % of the reals are to another real.
    """
    distance, error = kid(real, fake)
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    away, index = nearest(fake, real)
    apart, _ = nearest(real, real, itself=True)
    return {
        "fid": Statistics(real).fid(fake),
        "kid": distance,
        "kid_error": error,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "diversity": diversity(fake) / max(diversity(real), 1e-12),
        "train_distance": float(away.mean() / apart.mean().clamp_min(1e-12)),
        "copies": float((away < apart.quantile(_COPY_SHARE)).float().mean()),
    }, index


def _suffixed(name: str, suffix: str) -> str:
    return f"kid{suffix}_error" if name == "kid_error" else f"{name}{suffix}"


def _publish(
    settings: EvaluateSettings,
    name: str,
    folder: str,
    data: DataSet,
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    reals: Mapping[str, Reals],
    judges: Judges,
) -> EvaluateResult:
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for verdict in verdicts:
        metrics.setdefault(verdict.candidate, {})[verdict.label] = verdict.metrics
    about = classifier_at(judges.classifier).about if judges.classifier else None
    record: dict[str, Any] = {
        "settings": recorded(settings),
        "fingerprint": data.manifest.fingerprint,
        "real_photos": {label: len(real.pixels) for label, real in reals.items()},
        "candidates": {candidate.name: list(candidate.made_of) for candidate in candidates},
        "networks": list(judges.networks),
        "classifier": judges.classifier,
        "flags": flags(verdicts, reals, settings.samples, about),
        "metrics": metrics,
    }
    page = report.page(name, record, verdicts, reals)
    params = {**recorded(settings), "fingerprint": data.manifest.fingerprint}
    storage.write_bytes(storage.join(folder, report.PAGE), page.encode())
    storage.write_json(storage.join(folder, REPORT), record)
    with tracking.start_run(settings, name, job="evaluate", params=params) as log:
        for verdict in verdicts:
            prefix = f"{_mlflow_name(verdict.candidate)}/{_mlflow_name(verdict.label)}/"
            log.log_metrics({prefix + metric: value for metric, value in verdict.metrics.items()}, step=0)
        log.log_bytes(page.encode(), report.PAGE)
        log.log_bytes(json.dumps(record, indent=2).encode(), REPORT)
    return EvaluateResult(log.id, folder, metrics)


def _mlflow_name(name: str) -> str:
    """A name as part of a metric's, with what MLflow doesn't allow there replaced."""
    return posixpath.normpath(re.sub(r"[^\w./ -]", "_", name)).strip("./")


def flags(
    verdicts: Sequence[Verdict], reals: Mapping[str, Reals], wanted: int, about: Mapping[str, Any] | None = None
) -> list[str]:
    """What a reader must know before comparing the numbers.

    wanted: samples of each label that were asked for. about: what the classifier says of itself, if there is one.
    """
    fewest = min(verdict.samples for verdict in verdicts)
    fewest_reals = min(len(real.pixels) for real in reals.values())
    least = min(fewest, fewest_reals)
    found = []
    if least < FID_STEADY:
        found.append(
            f"FID between {fewest:,} samples and {fewest_reals:,} photos is biased upwards (steady from about "
            f"{FID_STEADY:,} of each): compare it only with FID of as many, and trust KID, which is unbiased, with its "
            f"standard error"
        )
    dims = {name: vectors.shape[1] for verdict in verdicts for name, vectors in verdict.look.features.items()}
    if any(least <= dim for dim in dims.values()):
        found.append(f"{least:,} images are fewer than features have numbers: FID's covariance is singular")
    if fewest < wanted:
        found.append(f"{wanted:,} samples were asked for; with baselines there are as many as photos held out for them")
    unknown = sorted({v.label for v in verdicts if v.confidence is None and v.label != ALL})
    if about is not None and unknown:
        found.append(f"the classifier doesn't know {', '.join(unknown)}: there is no agreement with it")
    if about and about.get("generated"):
        found.append(
            f"the classifier learnt from generated images ({about.get('generators', 'of unknown generators')}): "
            f"what it says of them is no independent judgement"
        )
    return found
