"""Usefulness: when does generated data help a classifier, and when does it hurt?

The mental model:

1. A grid of trainings, each the same GoogLeNet with the same number of images seen, examined on the same real
   validation photos: real photos only and with generated ones added, for several sizes of the real set, and
   generated only. Each is repeated with seeds of its own, which choose the real photos, the samples and the weights.
2. Ray Tune runs them side by side, as many as the cluster has room for. A finished training leaves its result in
   storage, so that an interrupted study goes on with the rest.
3. The table and the chart show mean and standard deviation over the seeds. What generated images change is taken
   seed by seed, since trainings of one seed begin with the same weights and real photos, and comes with Student's 95 %
   interval of the mean: only where 0 is outside do they help or hurt.

Every training sees the same number of images, so that the time is the same: a larger set is gone through less often,
which the table says as `passes`. What varies over the seeds are photos, samples and weights, not the generator.

The accuracy of a network that saw generated images only is the classification accuracy score, CAS (Ravuri and
Vinyals 2019, arXiv 1905.10887): how much of what tells the labels apart the generators have learnt.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.tune
import scipy.stats
import torch
from ray.util.queue import Queue

from raygan import charts, tracking
from raygan.classifier.classify import check_data
from raygan.classifier.loop import Lessons, fit_settings
from raygan.classifier.mixture import balanced_subset, combined, generated_photos, mixture_sizes
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.step import ClassifierFit
from raygan.data.batches import Photos, load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError, last_line
from raygan.models.hardware import keep_freed_memory
from raygan.runtime import cluster, storage
from raygan.runtime.progress import ImageProgress, InBackground, Seen
from raygan.runtime.runs import RunRecord, recorded
from raygan.runtime.settings import StorageSettings
from raygan.sampling.generators import NamedGenerator, matching_generators

#: Sizes of the real set that are compared by default, besides all photos.
DEFAULT_SIZES = (100, 400)

#: Settings that an interrupted study may go on with other values of.
MAY_CHANGE = {
    *StorageSettings.model_fields,
    *("data", "name", "cpus_per_trial", "gpus_per_trial"),
    *("seeds", "real_sizes", "real_fractions"),  # a larger grid takes over what is there
}


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

    @property
    def kind(self) -> tuple[str, int, int]:
        """What its repetitions share: the mixture, real photos and generated images."""
        return self.mixture, self.real, self.generated


@dataclass(frozen=True)
class Row:
    """A row of the table: accuracy over the seeds of one kind of training.

    trainings: those that came to an end; diverged: those that didn't. passes: times that each image was seen.
    deviation: of single trainings. gain: of accuracy over real photos alone, as many, and interval: half its 95 %
    interval; None where there are no such pairs, or only one.
    """

    mixture: str
    real: int
    generated: int
    trainings: int
    diverged: int
    passes: float
    accuracy: float
    deviation: float
    balanced_accuracy: float
    auroc: float
    ece: float
    gain: float | None = None
    interval: float | None = None


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
    found = matching_generators(settings, settings.model, data)
    trials = plan(settings, data.manifest.count("train"))
    name = settings.name or time.strftime("usefulness-%Y%m%d-%H%M%S")
    # As they are now: whoever is champion later must not finish what another began.
    pinned = settings.model_copy(update={"model": [one.name for one in found]})
    folder = storage.join(settings.storage, "studies", name)
    done = _results(folder, trials)
    missing = [trial for trial in trials if trial not in done]
    run = RunRecord.open(
        pinned, name, data.manifest.fingerprint, may_change=MAY_CHANGE, under="studies", unfinished=bool(missing)
    )
    params = {
        **recorded(settings),
        "fingerprint": data.manifest.fingerprint,
        "generators": ", ".join(one.name for one in found),
    }
    with tracking.start_run(settings, name, job="usefulness", params=params, run_id=run.mlflow_run_id) as log:
        run.save(mlflow_run_id=log.id, state="running")
        print(f"study {name} of {len(trials)} trainings in {run.folder}; --name {name} goes on with it", flush=True)
        if missing:
            if done:
                print(f"going on: {len(done)} of {len(trials)} trainings are done", flush=True)
            _run(settings, data, found, missing, folder)
            done = _results(folder, trials)
        rows = summarise(done, _batches(settings) * settings.batch_size)
        if rows:
            run.save(publications=run.publications + 1)
            _publish(rows, diverged_kinds(done), run.folder, log, data.manifest.count("validation"), run.publications)
        if len(done) < len(trials):
            raise RayganError(
                f"{len(trials) - len(done)} of {len(trials)} trainings failed; the same command tries them again"
            )
        if not rows:
            raise RayganError("all trainings diverged: give a lower --learning-rate, and another --name")
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


def _batches(settings: UsefulnessSettings) -> int:
    """Of each training."""
    return max(1, settings.images // settings.batch_size)


def _run(
    settings: UsefulnessSettings, data: DataSet, found: Sequence[NamedGenerator], trials: Sequence[Trial], folder: str
) -> None:
    batches = _batches(settings)
    with ImageProgress(batches * settings.batch_size * len(trials), "training") as progress:
        events = cluster.queue()
        room = _Room(settings, data, found, folder, events, batches)
        progress.follow(events, InBackground(lambda: room.tune(trials), "the study"))


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
        """Run the trials side by side, and say what failed."""
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
                **storage.for_ray(self.folder),
                failure_config=ray.tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        errors = tuner.fit().errors
        if errors:
            print(f"{len(errors)} of {len(trials)} trainings ended with: {last_line(errors[0])}", file=sys.stderr)

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
    keep_freed_memory()
    fit = ClassifierFit(task["labels"], fit_settings(settings, device), task["batches"], device)
    events: Queue = task["events"]

    def tell(seen: int) -> None:
        events.actor.put_nowait.remote(Seen(seen, worker=trial.key))

    tell(0)
    lessons = Lessons(fit, images, task["validation"], tell)
    learnt = lessons.learn(task["batches"])
    result = {**asdict(trial), **learnt, **lessons.examine()}
    if not math.isfinite(result["nll"]):
        # It would again: that is a result too.
        result = {**asdict(trial), "diverged": True}
    storage.write_json(_place(task["folder"], trial), result)
    ray.tune.report(result)


def _place(folder: str, trial: Trial) -> str:
    return storage.join(folder, "trials", f"{trial.key}.json")


def _results(folder: str, trials: Sequence[Trial]) -> dict[Trial, dict[str, float]]:
    """Of the trials that are done, in their order."""
    return {trial: result for trial in trials if (result := storage.read_json(_place(folder, trial)))}


def summarise(results: dict[Trial, dict[str, float]], images: int) -> list[Row]:
    """The table: a row for each kind of training that came to an end, in the order of the plan.

    images: that each training saw.
    """
    kinds: dict[tuple[str, int, int], dict[int, dict[str, float]]] = {}
    diverged = Counter(trial.kind for trial, result in results.items() if "diverged" in result)
    for trial, result in results.items():
        if "diverged" not in result:
            kinds.setdefault(trial.kind, {})[trial.seed] = result
    alone = {real: found for (_, real, generated), found in kinds.items() if not generated}

    def mean(found: dict[int, dict[str, float]], name: str) -> float:
        return float(np.mean([result[name] for result in found.values()]))

    rows = []
    for (mixture, real, generated), found in kinds.items():
        accuracies = [result["accuracy"] for result in found.values()]
        pairs = alone.get(real, {}) if generated else {}
        gains = [found[seed]["accuracy"] - pairs[seed]["accuracy"] for seed in found if seed in pairs]
        rows.append(
            Row(
                mixture,
                real,
                generated,
                trainings=len(found),
                diverged=diverged[mixture, real, generated],
                passes=images / (real + generated),
                accuracy=mean(found, "accuracy"),
                # The spread of single trainings, not of their mean; of one training there is none.
                deviation=float(np.std(accuracies, ddof=1)) if len(found) > 1 else 0.0,
                balanced_accuracy=mean(found, "balanced_accuracy"),
                auroc=mean(found, "auroc"),
                ece=mean(found, "ece"),
                gain=float(np.mean(gains)) if gains else None,
                interval=half_interval(gains) if len(gains) > 1 else None,
            )
        )
    return rows


def diverged_kinds(results: dict[Trial, dict[str, float]]) -> list[str]:
    """In words, the kinds of training that have no row, since all that there are of them diverged."""
    ended = {trial.kind for trial, result in results.items() if "diverged" not in result}
    diverged = Counter(trial.kind for trial in results if trial.kind not in ended)
    return [
        f"{mixture}, {real:,} real and {generated:,} generated: {count} diverged, none came to an end"
        for (mixture, real, generated), count in diverged.items()
    ]


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean of two values or more, by Student's t."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def in_words(rows: Sequence[Row], photos: int, diverged: Sequence[str] = ()) -> str:
    """The table for a terminal, with what adding generated images did at each size.

    photos: to validate on. diverged: see `diverged_kinds`.
    """
    width = max(len(row.mixture) for row in rows)
    lines = [f"{'training set':{width}}   real  generated  passes  accuracy"]
    lines += [
        f"{row.mixture:{width}} {row.real:6,} {row.generated:10,} {row.passes:7.1f}  {row.accuracy:.1%}"
        + (f" ± {row.deviation:.1%}" if row.trainings > 1 else "")
        + (f", {row.diverged} diverged" if row.diverged else "")
        for row in rows
    ]
    lines += diverged
    most = max(row.trainings for row in rows)
    lines.append(f"on {photos:,} validation photos; ± is the deviation of single trainings, of which there are {most}")
    for row in rows:
        if row.gain is not None:
            lines.append(f"{row.generated:,} generated beside {row.real:,} real: {row.gain:+.1%}{_verdict(row)}")
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    """What a gain means, in words."""
    if row.gain is None or row.interval is None:
        return ", of one training each: more --seeds would tell"
    low, high = row.gain - row.interval, row.gain + row.interval
    verdict = "helps" if low > 0 else "hurts" if high < 0 else "no clear change"
    return f" (95 % interval {low:+.1%} to {high:+.1%}), {verdict}"


def _publish(
    rows: Sequence[Row], diverged: Sequence[str], folder: str, log: tracking.Run, photos: int, step: int
) -> None:
    words = in_words(rows, photos, diverged)
    print(words, flush=True)
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
        "table.txt": (words + "\n").encode(),
        "usefulness.png": charts.study(lines, level, f"accuracy on {photos:,} real validation photos"),
    }
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
        log.log_bytes(content, name)
    # Not at the number of trainings: it may fall when the grid is changed, and of passed steps nothing is sent.
    log.log_metrics({_metric(row): row.accuracy for row in rows}, step)


def _metric(row: Row) -> str:
    """A row's name in MLflow."""
    if not row.real:
        return "cas"
    return f"accuracy/real{row.real}" + (f"_generated{row.generated}" if row.generated else "")
