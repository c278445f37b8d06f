"""The study: a grid of trainings, run side by side with Ray Tune, then a table and a chart.

1. `plan` lays out the grid: mixtures of real and generated images, and sizes of the real set.
   Each kind is repeated with several seeds, which choose the real photos, the latents and the initial weights.
2. `raygan.classifier.usefulness.sets` trains a generator on each draw of real photos alone, and makes the image sets.
3. Ray Tune runs as many trainings at a time as fit the cluster. Each writes its result to storage when done, so an
   interrupted study goes on with the rest.
4. The results of all seeds are summarized and published.

All trainings see the same number of images and so take the same time; each image of a larger set is seen fewer times
(`passes` in the table). They are validated on photos that neither the classifier nor its generator saw.

With generators from elsewhere, seeds don't vary the generator, and generated images alone are a kind, too. Accuracy
after training on those is the classification accuracy score, CAS (Ravuri and Vinyals 2019, arXiv 1905.10887): how much
of the difference between the labels the generators have learned.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import ray.tune
from tqdm import tqdm

from raygan import tracking
from raygan.classifier.mixture import check_data, mixture_sizes
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.usefulness.report import publish
from raygan.classifier.usefulness.sets import TrialImages, generator_settings, lay_out
from raygan.classifier.usefulness.statistics import Row, diverged_kinds, summarize
from raygan.classifier.usefulness.trial import SharedTask, Trial, load_results, run_trial
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError, last_line
from raygan.runtime import capacity, cluster, storage
from raygan.runtime.progress import ImageProgress, InBackground
from raygan.runtime.runs import RunRecord, recorded
from raygan.runtime.settings import StorageSettings
from raygan.sampling.generators import NamedGenerator, matching_generators

#: Sizes of the real set compared by default: with generators from elsewhere (besides all photos), and with a generator
#: trained on each real set, which takes minutes.
DEFAULT_SIZES, OWN_SIZES = (100, 400), (100,)

#: Settings that may differ when a study is resumed.
MAY_CHANGE = {
    *StorageSettings.model_fields,
    *("data", "name", "cpus_per_trial", "gpus_per_trial"),
    *("seeds", "real_sizes", "real_fractions"),  # a larger grid keeps the results there are
}


@dataclass(frozen=True)
class UsefulnessResult:
    """What a study found.

    Attributes:
        run_id: of the MLflow run.
        folder: of table and chart.
        rows: of the table.
    """

    run_id: str
    folder: str
    rows: list[Row]

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps({"run_id": self.run_id, "folder": self.folder, "table": [asdict(row) for row in self.rows]})


def study(settings: UsefulnessSettings) -> UsefulnessResult:
    """Run the trainings that are not done yet, then write table and chart.

    Raises:
        ConfigurationError: the settings don't fit the shards or the cluster.
        RayganError: anything else failed; the message says what to do.
    """
    data = DataSet.open(settings.data)
    check_data(data)
    tracking.check_records(settings)
    cluster.connect(settings)
    _check_room(settings)
    generators = matching_generators(settings, settings.model, data) if settings.from_elsewhere else []
    if not generators:
        generator_settings(settings, data)  # an unknown preset is reported before the work
    names = [one.name for one in generators]
    trials = plan(settings, data.manifest.count("train"), len(data.manifest.classes))
    name = settings.name or time.strftime("usefulness-%Y%m%d-%H%M%S")
    folder = storage.join(settings.storage, "studies", name)
    results = load_results(folder, trials)
    run = RunRecord.open(
        # With the generators pinned: a new champion must not finish what another began.
        settings.model_copy(update={"model": names}),
        name,
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        under="studies",
        unfinished=len(results) < len(trials),
    )
    params = {**recorded(settings), "fingerprint": data.manifest.fingerprint, "generators": ", ".join(names)}
    with tracking.start_run(settings, name, job="usefulness", params=params, run_id=run.mlflow_run_id) as log:
        run.save(mlflow_run_id=log.id, state="running")
        log.log_data(storage.public(data.address), data.manifest.fingerprint, data.profile)
        print(f"study {name} of {len(trials)} trainings in {run.folder}; --name {name} resumes it", flush=True)
        if len(results) < len(trials):
            if results:
                print(f"resuming: {len(results)} of {len(trials)} trainings are done", flush=True)
            _run(settings, data, generators, [trial for trial in trials if trial not in results], folder)
            results = load_results(folder, trials)
        rows = summarize(results, _length(settings))
        if rows:
            run.save(publications=run.publications + 1)
            counts = {len(r["right"]) - r["right"].count("-") for r in results.values() if "right" in r}
            counts = counts or {data.manifest.count("validation")}
            photos = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
            publish(rows, diverged_kinds(results), run.folder, log, photos, run.publications)
        _check_done(results, trials, rows)
        run.save(state="finished")
    return UsefulnessResult(log.id, run.folder, rows)


def plan(settings: UsefulnessSettings, photos: int, labels: int) -> list[Trial]:
    """Every training of the grid, generated images only first.

    Args:
        settings: of the study.
        photos: real photos to train on.
        labels: of the photos.

    Raises:
        ConfigurationError: a training set would be smaller than a batch or larger than `photos`, or would leave the
            generator that is trained on it without a photo of some label.
    """
    usual = [*(size for size in DEFAULT_SIZES if size < photos), photos]
    if not settings.from_elsewhere:
        usual = [min(max(size, labels), photos) for size in OWN_SIZES]
    sizes = sorted(set(settings.real_sizes or usual))
    if sizes[-1] > photos:
        raise ConfigurationError(f"--real-sizes: {sizes[-1]} is more than the {photos} photos to train on")
    if sizes[0] < settings.batch_size:
        raise ConfigurationError(
            f"--real-sizes: {sizes[0]} photos are fewer than one batch of {settings.batch_size}: lower --batch-size"
        )
    trains_generators = not settings.from_elsewhere and min(settings.real_fractions) < 1
    if trains_generators and sizes[0] < labels:
        raise ConfigurationError(
            f"--real-sizes: with {sizes[0]} photos, a generator never sees some of the {labels} labels that it has to "
            f"draw: give {labels} or more"
        )
    # Shows what a generator from elsewhere has learned of the labels; one of few photos is judged by what it adds.
    kinds = [(0, photos, 0.0)] if settings.from_elsewhere else []
    for fraction in dict.fromkeys(settings.real_fractions):
        kinds += [(*mixture_sizes(size, fraction, photos, None), fraction) for size in sizes]
    return [Trial(*kind, seed=settings.seed + number) for number in range(settings.seeds) for kind in kinds]


def _check_room(settings: UsefulnessSettings) -> None:
    needs = _resources(settings)
    if not capacity.room(needs):
        raise ConfigurationError(
            f"--cpus-per-trial: no node of this cluster has {needs['CPU']:g} CPU and {needs['GPU']:g} GPU: ask for less"
        )


def _check_done(results: dict[Trial, dict[str, float]], trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    if len(results) < len(trials):
        raise RayganError(
            f"{len(trials) - len(results)} of {len(trials)} trainings failed; the same command tries them again"
        )
    if not rows:
        raise RayganError("all trainings diverged: give a lower --learning-rate, and another --name")


def _length(settings: UsefulnessSettings) -> int:
    """Images that each training sees: whole batches."""
    return settings.batch_size * max(1, settings.images // settings.batch_size)


def _resources(settings: UsefulnessSettings) -> dict[str, float]:
    gpus = capacity.gpu_share() if settings.gpus_per_trial is None else settings.gpus_per_trial
    return {"CPU": settings.cpus_per_trial, "GPU": gpus}


def _run(
    settings: UsefulnessSettings,
    data: DataSet,
    generators: Sequence[NamedGenerator],
    trials: Sequence[Trial],
    folder: str,
) -> None:
    """Run the trials with a progress bar."""
    images = lay_out(settings, data, trials, generators, folder, _resources(settings))
    task = SharedTask(
        settings=settings,
        photos=data.manifest.count("train") + data.manifest.count("validation"),
        labels=len(data.manifest.classes),
        length=_length(settings),
        events=cluster.queue(),
        folder=folder,
    )
    with ImageProgress(task.length * len(trials), "training") as progress:
        sets = list(zip(trials, images, strict=True))
        progress.follow(task.events, InBackground(lambda: _tune(task, sets), "the study", folder))


def _tune(task: SharedTask, sets: Sequence[tuple[Trial, TrialImages]]) -> None:
    """Run the trainings side by side, and print how many failed."""
    trainable = ray.tune.with_parameters(run_trial, task=task, sets=sets)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, _resources(task.settings)),
        param_space={"number": ray.tune.grid_search(list(range(len(sets))))},
        # A process imports torch once, not for each training.
        tune_config=ray.tune.TuneConfig(reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="tune",
            **storage.for_ray(task.folder),
            failure_config=ray.tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    errors = tuner.fit().errors
    if errors:
        tqdm.write(f"{len(errors)} of {len(sets)} trainings failed: {last_line(errors[0])}", file=sys.stderr)
