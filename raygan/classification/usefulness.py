"""Usefulness: when does generated data help a classifier, and when does it hurt?

The mental model:

1. A grid of trainings, each the same GoogLeNet with the same number of images seen, examined on the same real
   validation photos: real photos only and with generated ones added, for several sizes of the real set, and
   generated only. Each is repeated with seeds of its own, which choose the real photos, the samples and the weights.
2. Ray Tune runs them side by side, as many as the cluster has room for. A finished training leaves its result in
   storage, so that an interrupted study goes on with the rest.
3. The table and the chart show mean and standard deviation over the seeds.

The accuracy of a network that saw generated images only is the classification accuracy score, CAS (Ravuri and
Vinyals 2019, arXiv 1905.10887): how much of what tells the labels apart the generators have learnt.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.tune
import torch
from ray.util.queue import Queue

from raygan import charts, cluster, storage, tracking
from raygan.batches import Photos, load_photos
from raygan.classification.classify import check_data
from raygan.classification.lessons import Lessons, fit_settings
from raygan.classification.mixture import balanced_subset, combined, generated_photos, mixture_sizes
from raygan.config import StorageSettings, UsefulnessSettings
from raygan.errors import ConfigurationError, RayganError, last_line
from raygan.generators import NamedGenerator, check_drawn, check_labels, check_size, find_generators
from raygan.judge.fitting import ClassifierFit
from raygan.runs import ImageProgress, InBackground, RunRecord, Seen, recorded
from raygan.shards import DataSet

#: Sizes of the real set that are compared by default, besides all photos.
DEFAULT_SIZES = (100, 400)

#: Settings that an interrupted study may go on with other values of.
MAY_CHANGE = {*StorageSettings.model_fields, "data", "name", "cpus_per_trial", "gpus_per_trial"}


@dataclass(frozen=True)
class Trial:
    """One training of the study: how many real photos and generated images, and which repetition."""

    real: int
    generated: int
    fraction: float
    seed: int

    @property
    def key(self) -> str:
        """Its file name in storage."""
        return f"real{self.real}-generated{self.generated}-seed{self.seed}"

    @property
    def mixture(self) -> str:
        """Its line in the chart."""
        if not self.real:
            return "generated only (CAS)"
        return "real only" if not self.generated else f"{self.fraction:.0%} real, the rest generated"


@dataclass(frozen=True)
class Row:
    """A row of the table: accuracy over the seeds of one kind of training."""

    mixture: str
    real: int
    generated: int
    trainings: int
    accuracy: float
    deviation: float
    balanced_accuracy: float
    auroc: float
    ece: float


@dataclass(frozen=True)
class UsefulnessResult:
    """What a study found."""

    run_id: str
    folder: str
    rows: list[Row]

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps({"run_id": self.run_id, "folder": self.folder, "table": [asdict(row) for row in self.rows]})


def study(settings: UsefulnessSettings) -> UsefulnessResult:
    """Run the trainings that are not done yet, and write table and chart.

    Raises ConfigurationError for settings that the shards or the cluster can't serve, RayganError for anything
    else that went wrong, each with the way out.
    """
    data = DataSet.open(settings.data)
    check_data(data)
    tracking.connect(settings)
    cluster.connect(settings)
    needs = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    if not cluster.room(needs):
        raise ConfigurationError(
            f"--cpus-per-trial: no node of this cluster has {needs['CPU']:g} CPU and {needs['GPU']:g} GPU: ask for less"
        )
    found = find_generators(settings, settings.model, data.manifest.classes)
    check_labels(found, data)
    check_size(found, data)
    check_drawn(found, data.manifest.classes)
    trials = plan(settings, data.manifest.count("train"))
    name = settings.name or time.strftime("usefulness-%Y%m%d-%H%M%S")
    # As they are now: whoever is champion later must not finish what another began.
    pinned = settings.model_copy(update={"model": [one.name for one in found]})
    run = RunRecord.open(pinned, name, data.manifest.fingerprint, may_change=MAY_CHANGE, under="studies")
    params = {
        **recorded(settings),
        "fingerprint": data.manifest.fingerprint,
        "generators": ", ".join(one.name for one in found),
    }
    with tracking.start_run(settings, name, job="usefulness", params=params, run_id=run.mlflow_run_id) as log:
        run.save(mlflow_run_id=log.id, state="running")
        print(f"study {name} of {len(trials)} trainings in {run.folder}; --name {name} goes on with it", flush=True)
        results = _run(settings, data, found, trials, run.folder)
        rows = summarise(results)
        _publish(rows, run.folder, log)
        run.save(state="finished")
    return UsefulnessResult(log.id, run.folder, rows)


def plan(settings: UsefulnessSettings, photos: int) -> list[Trial]:
    """Every training of the grid; CAS comes first. photos: real ones to train on.

    Raises ConfigurationError if a training set would be smaller than a batch, or larger than the photos there are.
    """
    sizes = sorted(set(settings.real_sizes or [*(size for size in DEFAULT_SIZES if size < photos), photos]))
    if sizes[-1] > photos:
        raise ConfigurationError(
            f"--real-sizes: {sizes[-1]} is more than the {photos} photos that there are to train on"
        )
    if sizes[0] < settings.batch_size:
        raise ConfigurationError(
            f"--real-sizes: {sizes[0]} photos are fewer than one batch of {settings.batch_size}: lower --batch-size"
        )
    kinds = [(0, photos, 0.0)]
    for fraction in dict.fromkeys(settings.real_fractions):
        kinds += [(*mixture_sizes(size, fraction, photos, None), fraction) for size in sizes]
    return [Trial(*kind, seed=settings.seed + number) for number in range(settings.seeds) for kind in kinds]


def _run(
    settings: UsefulnessSettings, data: DataSet, found: Sequence[NamedGenerator], trials: Sequence[Trial], folder: str
) -> dict[Trial, dict[str, float]]:
    results = {trial: result for trial in trials if (result := storage.read_json(_place(folder, trial)))}
    missing = [trial for trial in trials if trial not in results]
    if results and missing:
        print(f"going on: {len(results)} of {len(trials)} trainings are done", flush=True)
    if missing:
        batches = max(1, settings.images // settings.batch_size)
        with ImageProgress(batches * settings.batch_size * len(missing), "training") as progress:
            events = cluster.queue()
            room = _Room(settings, data, found, folder, events, batches)
            progress.follow(events, InBackground(lambda: room.tune(missing), "the study"))
    results = {trial: result for trial in trials if (result := storage.read_json(_place(folder, trial)))}
    if len(results) < len(trials):
        raise RayganError(
            f"{len(trials) - len(results)} of {len(trials)} trainings failed; the same command tries them again"
        )
    return results


class _Room:
    """What all trainings share, in the object store, and Ray Tune's run over them."""

    def __init__(
        self,
        settings: UsefulnessSettings,
        data: DataSet,
        found: Sequence[NamedGenerator],
        folder: str,
        events: Queue,
        batches: int,
    ):
        self.settings, self.folder, self.events, self.batches = settings, folder, events, batches
        self.labels = data.manifest.classes
        self.photos, self.validation = load_photos(data, "train", None), load_photos(data, "validation", None)
        self._found = found

    def tune(self, trials: Sequence[Trial]) -> None:
        """Run the trials side by side."""
        lots = [(trial, self._images(trial)) for trial in trials]
        task = {
            "settings": self.settings,
            "validation": self.validation,
            "labels": len(self.labels),
            "events": self.events,
            "batches": self.batches,
            "folder": self.folder,
        }
        needs = {"CPU": self.settings.cpus_per_trial, "GPU": self.settings.gpus_per_trial}
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(ray.tune.with_parameters(train_one, task=task, lots=lots), needs),
            param_space={"number": ray.tune.grid_search(list(range(len(lots))))},
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=storage.resolve(self.folder)[1] if "://" not in self.folder else self.folder,
                failure_config=ray.tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        errors = tuner.fit().errors
        if errors:
            raise RayganError(f"{len(errors)} of {len(trials)} trainings ended with: {last_line(errors[0])}")

    def _images(self, trial: Trial) -> Photos:
        """The trial's training images. Those of a seed share their samples, smaller sets being part of larger."""
        parts = []
        if trial.real:
            parts.append(balanced_subset(self.photos, trial.real, len(self.labels), trial.seed))
        if trial.generated:
            parts.append(generated_photos(self._found, self.labels, trial.generated, trial.seed))
        return combined(*parts)


def train_one(config: dict[str, Any], task: dict[str, Any], lots: Sequence[tuple[Trial, Photos]]) -> None:
    """One training, in a process of Ray Tune's; its result goes to storage."""
    trial, images = lots[config["number"]]
    settings: UsefulnessSettings = task["settings"].model_copy(update={"seed": trial.seed})
    device = torch.device("cuda" if settings.gpus_per_trial and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    fit = ClassifierFit(task["labels"], fit_settings(settings, device), task["batches"], device)
    events: Queue = task["events"]

    def tell(seen: int) -> None:
        events.actor.put_nowait.remote(Seen(seen, worker=trial.key))

    tell(0)
    lessons = Lessons(fit, images, task["validation"], tell)
    learnt = lessons.learn(task["batches"])
    result = {**asdict(trial), **learnt, **lessons.examine()}
    if not math.isfinite(result["nll"]):
        raise RayganError(f"the training {trial.key} diverged: give a lower --learning-rate")
    storage.write_json(_place(task["folder"], trial), result)
    ray.tune.report(result)


def _place(folder: str, trial: Trial) -> str:
    return storage.join(folder, "trials", f"{trial.key}.json")


def summarise(results: dict[Trial, dict[str, float]]) -> list[Row]:
    """The table: a row for each kind of training, in the order of the plan."""
    kinds: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    for trial, result in results.items():
        kinds.setdefault((trial.mixture, trial.real, trial.generated), []).append(result)

    def mean(found: list[dict[str, float]], name: str) -> float:
        return float(np.mean([result[name] for result in found]))

    return [
        Row(
            mixture,
            real,
            generated,
            trainings=len(found),
            accuracy=mean(found, "accuracy"),
            # The spread of single trainings, not of their mean; of one training there is none.
            deviation=float(np.std([r["accuracy"] for r in found], ddof=1)) if len(found) > 1 else 0.0,
            balanced_accuracy=mean(found, "balanced_accuracy"),
            auroc=mean(found, "auroc"),
            ece=mean(found, "ece"),
        )
        for (mixture, real, generated), found in kinds.items()
    ]


def in_words(rows: Sequence[Row]) -> str:
    """The table for a terminal, with what adding generated images did at each size."""
    width = max(len(row.mixture) for row in rows)
    lines = [f"{'training set':{width}}  real  generated  accuracy"]
    lines += [
        f"{row.mixture:{width}} {row.real:5,} {row.generated:10,}  {row.accuracy:.1%}"
        + (f" ± {row.deviation:.1%}" if row.trainings > 1 else "")
        for row in rows
    ]
    alone = {row.real: row for row in rows if row.real and not row.generated}
    for row in rows:
        if row.real in alone and row.generated:
            gain = row.accuracy - alone[row.real].accuracy
            spread = max((row.deviation**2 + alone[row.real].deviation ** 2) ** 0.5, 1e-9)
            verdict = "no clear change" if abs(gain) < spread else "helps" if gain > 0 else "hurts"
            if min(row.trainings, alone[row.real].trainings) < 2:
                verdict = "of one training each: more --seeds would tell"
            lines.append(f"{row.generated:,} generated beside {row.real:,} real: {gain:+.1%}, {verdict}")
    return "\n".join(lines)


def _publish(rows: Sequence[Row], folder: str, log: tracking.Run) -> None:
    print(in_words(rows), flush=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(rows[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    lines: dict[str, list[tuple[int, float, float]]] = {}
    level = {}
    for row in rows:
        if row.real:
            lines.setdefault(row.mixture, []).append((row.real, row.accuracy, row.deviation))
        else:
            level[row.mixture] = row.accuracy, row.deviation
    files = {
        "table.csv": table.getvalue().encode(),
        "table.txt": (in_words(rows) + "\n").encode(),
        "usefulness.png": charts.study(lines, level),
    }
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
        log.log_bytes(content, name)
    log.log_metrics({_metric(row): row.accuracy for row in rows}, step=0)


def _metric(row: Row) -> str:
    """A row's name in MLflow."""
    if not row.real:
        return "cas"
    return f"accuracy/real{row.real}" + (f"_generated{row.generated}" if row.generated else "")
