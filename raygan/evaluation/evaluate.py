"""Evaluate: generators and real shards in, a report card out.

1. Find the candidates and the networks by name. Mistakes in the settings show here, before the work.
2. Collect the real photos, each candidate's samples, and the networks' outputs for them.
3. Measure each candidate against the real photos.
4. When all numbers are there, write the page, the JSON file and MLflow's run, in this order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raygan import tracking
from raygan.cli import strict_json
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.evaluation import report
from raygan.evaluation.candidates import Candidate, find_candidates, with_baselines
from raygan.evaluation.collect import ImageSet, Networks, classifier_at, draw_samples, find_networks, real_photos
from raygan.evaluation.decisions import decisions
from raygan.evaluation.settings import EvaluateSettings
from raygan.evaluation.verdict import Verdict, measure_all
from raygan.metrics.distances import LEAST
from raygan.metrics.registry import METRICS
from raygan.runtime import cluster, storage
from raygan.runtime.room import warn_of_room
from raygan.runtime.runs import recorded
from raygan.sampling.generators import ALL

#: File name of the numbers, beside the page.
REPORT = "report.json"


@dataclass(frozen=True)
class EvaluateResult:
    """Where the report is, and its numbers.

    Attributes:
        run_id: of MLflow's run.
        folder: address of the report's folder.
        metrics: value by candidate, label and name.
    """

    run_id: str
    folder: str
    metrics: dict[str, dict[str, dict[str, float]]]

    def to_json(self) -> str:
        """The job's last line."""
        page = storage.join(self.folder, report.PAGE)
        return json.dumps({"run_id": self.run_id, "report": page, "metrics": self.metrics})


def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Evaluate the generators and write the report.

    Raises:
        RayganError: something can't be evaluated. Nothing is written then.
    """
    dict(METRICS.items())  # a package's metric that can't be imported is reported before the work
    data = DataSet.open(settings.data)
    tracking.check_records(settings)
    cluster.connect(settings)
    candidates = find_candidates(settings, data)
    networks = find_networks(settings)
    name = settings.name or time.strftime("report-%Y%m%d-%H%M%S")
    folder = _folder(settings, name)
    labels = list(dict.fromkeys(label for candidate in candidates for label in candidate.sources))
    _check_room(settings, data, labels, networks)
    reals = {label: real_photos(data, label, settings.real_images, networks, settings.storage) for label in labels}
    counts = dict.fromkeys(labels, settings.samples)
    if settings.baselines:
        reals, held_out = _halves(reals, settings.seed)
        counts = {label: min(settings.samples, len(held_out[label])) for label in labels}
        candidates = with_baselines(candidates, held_out, data.manifest.image_size, settings.seed)
    _check_enough(reals, counts)
    drawn = draw_samples(candidates, counts, networks, settings.seed)
    verdicts = measure_all(candidates, drawn, reals, networks.classes)
    record = _record(settings, data, candidates, networks, reals, verdicts)
    page, text = report.page(name, record, verdicts, reals), strict_json(json.dumps(record), indent=2) + "\n"
    files = {report.PAGE: page.encode(), REPORT: text.encode()}
    for file, content in files.items():
        storage.write_bytes(storage.join(folder, file), content)
    return EvaluateResult(_log(settings, name, data, record, files), folder, record["metrics"])


def _folder(settings: EvaluateSettings, name: str) -> str:
    """Where the report goes. Checks that it is writable, and says if the report will replace another."""
    folder = settings.output or storage.join(settings.storage, "reports", name)
    if storage.read_json(storage.join(folder, REPORT)) is not None:
        print(f"the report in {folder} will be replaced", flush=True)
    storage.check_writable(folder)
    return folder


def _check_room(settings: EvaluateSettings, data: DataSet, labels: Sequence[str], networks: Networks) -> None:
    """Warn if the storage has no room for the features of the real photos."""
    counts = [data.manifest.count("train", None if label == ALL else label) for label in labels]
    photos = sum(min(count, settings.real_images) for count in counts)
    warn_of_room("--storage", settings.storage, 4 * photos * networks.dimensions, f"features of {photos:,} photos")


def _halves(reals: Mapping[str, ImageSet], seed: int) -> tuple[dict[str, ImageSet], dict[str, Tensor]]:
    """Half of each label's photos to compare with, and the pixels of the other half, which are the baseline."""
    compared, held_out = {}, {}
    for label, real in reals.items():
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        compared[label] = real.take(order[: len(order) // 2].sort().values)
        held_out[label] = real.pixels[order[len(order) // 2 :].sort().values]
    return compared, held_out


def _check_enough(reals: Mapping[str, ImageSet], counts: Mapping[str, int]) -> None:
    """Raise RayganError if a label has too few photos to compare with, or too few held out as a baseline."""
    for label, real in reals.items():
        for photos, purpose in ((len(real), "to compare with"), (counts[label], "as a baseline")):
            if photos < LEAST:
                raise RayganError(
                    f"--data: {photos} photos of {label} are left {purpose}; the metrics need at least {LEAST}: "
                    f"prepare more, or leave out the label or --baselines"
                )


def _record(
    settings: EvaluateSettings,
    data: DataSet,
    candidates: Sequence[Candidate],
    networks: Networks,
    reals: Mapping[str, ImageSet],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """The content of report.json."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for verdict in verdicts:
        metrics.setdefault(verdict.candidate, {})[verdict.label] = verdict.metrics
    about = classifier_at(networks.classifier).about if networks.classifier else None
    return {
        "settings": recorded(settings),
        "fingerprint": data.manifest.fingerprint,
        "real_photos": {label: len(real) for label, real in reals.items()},
        "candidates": {candidate.name: list(candidate.made_of) for candidate in candidates},
        "networks": list(networks.features.values()),
        "decided": decisions(networks.features, data.manifest.configuration, candidates),
        "classifier": networks.classifier,
        "flags": report.flags(verdicts, reals, settings.samples, about),
        "metrics": metrics,
    }


def _log(
    settings: EvaluateSettings, name: str, data: DataSet, record: Mapping[str, Any], files: Mapping[str, bytes]
) -> str:
    """Log the report to MLflow; the run's id."""
    params = {**record["settings"], "fingerprint": record["fingerprint"]}
    with tracking.start_run(settings, name, job="evaluate", params=params) as log:
        log.log_data(storage.public(data.address), data.manifest.fingerprint, data.profile, "evaluation")
        for candidate, labels in record["metrics"].items():
            for label, metrics in labels.items():
                place = f"{candidate}/{label.replace('/', '_')}"
                named = {f"{place}/{key}": value for key, value in metrics.items()}
                log.log_metrics(named, step=0)
        for file, content in files.items():
            log.log_bytes(content, file)
    return log.id
