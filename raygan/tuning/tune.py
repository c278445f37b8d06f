"""Tune: a search over trainings, on whatever cluster there is.

The mental model:

1. `tune` reads the shards into the object store once, measures the reference of KID once, and starts Ray Tune.
2. Each trial (`run_trial`) is `raygan.training.train.train` with its own Ray Train workers, on settings from one point
   of the space (`raygan.tuning.space`), its MLflow run a child of the search's. After each measurement of KID it
   reports to Tune, whose scheduler may stop it or, with PBT, hand it a better trial's checkpoint.
3. At the end `raygan.tuning.report` draws what was found, and ``best.yaml`` is written, which `jobs/train.py` takes.

A search lives in ``<storage>/searches/<name>``; the same command goes on with an interrupted one. What Tune keeps
there is a pickle: only resume searches from a storage that nobody else writes to.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
import yaml
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from tqdm import tqdm

from raygan import tracking
from raygan.data.batches import load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime import cluster, reservations, storage
from raygan.runtime.progress import InBackground
from raygan.runtime.runs import RunRecord, is_finished, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.training.history import History
from raygan.training.monitor import start_measuring, with_network
from raygan.training.settings import TrainSettings
from raygan.training.train import Shared, check, train
from raygan.tuning import report as search_report
from raygan.tuning.settings import SearchOptions, TuneSettings
from raygan.tuning.space import Axis, parse_space, settings_of, source_point
from raygan.tuning.trial import _POPULATION, COLLAPSED, TrialRecord, run_trial

#: Settings that are a search's or a person's own, and don't belong into a file for others.
_PERSONAL = {*StorageSettings.model_fields, "data", "name", "allow_changes", "promote"}

#: Trials whose checkpoints stay on disk.
KEPT = 3


@dataclass(frozen=True)
class TuneResult:
    """What a search found."""

    run_id: str
    best: dict[str, Any]
    kid: float
    trials: int
    settings_file: str
    pictures: str

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps(self.__dict__)


#: Settings that may change between a search and its resumption.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("concurrent", "train_best", "promote"),
}


def tune(settings: TuneSettings) -> TuneResult:
    """Search, and say what was best; goes on with an interrupted search of the same name.

    Raises ConfigurationError for a space, a metric or workers that can't be, RayganError if no trial got anywhere.
    """
    base = trial_base(settings)
    axes = parse_space(settings.space, base)
    data = check(base)
    tracking.connect(settings)
    cluster.connect(settings)
    base = with_network(base)
    resources = cluster.worker_resources(base)
    cluster.require(base.fewest_workers, resources)
    at_once = min(settings.trials, settings.concurrent or cluster.room(resources) // base.fewest_workers)
    name = settings.name or time.strftime(f"search-{settings.label or 'all'}-%Y%m%d-%H%M%S")
    record = RunRecord.open(
        settings,
        name,
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        under="searches",
    )
    values = recorded(settings)
    with tracking.start_run(
        settings,
        name,
        job="tune",
        params={name: values[name] for name in (*SearchOptions.model_fields, "data")},
        tags={"raygan.label": settings.label or "all"},
        run_id=record.mlflow_run_id,
    ) as log:
        record.save(mlflow_run_id=log.id, state="running")
        print(f"search {name} in {record.folder}; --name {name} resumes it", flush=True)
        try:
            with reservations.returned_cores():
                trials = _search(settings, base, axes, data, record, log, at_once)
        except BaseException:
            tracking.kill_children(log)
            raise
        tracking.close_children(settings, log)
        result = _conclude(settings, base, axes, trials, record, log)
        record.save(state="finished")
    if settings.train_best:
        full = settings_of(_full(settings), result.best)
        print(train(full.model_copy(update={"name": f"{name}-best"})).to_json(), flush=True)
    return result


def trial_base(settings: TuneSettings) -> TrainSettings:
    """The settings that all trials share."""
    if settings.minutes is not None:
        raise ConfigurationError("--minutes: trials are compared at the same number of images: give --trial-kimg")
    if settings.quality_every == 0:
        raise ConfigurationError("--quality-every: a search needs the KID that 0 switches off: leave it out")
    values = {name: getattr(settings, name) for name in TrainSettings.model_fields}
    every = settings.judged_every
    cadence = {"kimg": settings.trial_kimg, "quality_every": every, "checkpoint_every": every, "snapshot_every": every}
    return TrainSettings.model_validate({**values, **cadence, "keep_checkpoints": 1, "promote": False})


def _search(
    settings: TuneSettings,
    base: TrainSettings,
    axes: list[Axis],
    data: DataSet,
    record: RunRecord,
    log: tracking.Run,
    at_once: int,
) -> list[TrialRecord]:
    """Run the trials, or those that an interrupted search has left."""
    photos = load_photos(data, "train", base.label)
    shared = Shared(photos, *start_measuring(base, data, photos, at_once))
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, base=base, shared=shared, search=record.name, parent=log.id),
        {"memory": 2**20},  # cores are for the training's workers; Tune wants something reserved
    )
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # verbose=0 would print a table and hints all the same
    progress = _Progress(settings, record.name)
    filesystem, folder = storage.resolve(storage.join(record.folder, "tune"))
    if ray.tune.Tuner.can_restore(folder, filesystem):
        tuner = ray.tune.Tuner.restore(
            folder,
            trainable=trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
    else:
        scheduler, searcher = _scheduler(settings, axes), _searcher(settings, axes, at_once)
        tuner = ray.tune.Tuner(
            trainable,
            param_space=_distributions(settings, axes),
            tune_config=ray.tune.TuneConfig(
                metric="kid",
                mode="min",
                num_samples=settings.trials,
                scheduler=scheduler,
                search_alg=searcher,
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                **storage.for_ray(record.folder),
                failure_config=ray.tune.FailureConfig(max_failures=2),
                # Of a population. With fewer, one is gone before another trial has copied it.
                checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=4),
                callbacks=[progress],
                verbose=0,
            ),
        )
    try:
        # Where Ctrl-C isn't heard: one that comes while Ray's own code waits might be taken for another error.
        results = InBackground(tuner.fit, "the search").result()
    finally:
        progress.close()
    return [_read(result, settings) for result in results]


def _distributions(settings: TuneSettings, axes: list[Axis]) -> dict[str, Any]:
    space: dict[str, Any] = {
        axis.name: ray.tune.choice(list(axis.choices)) if axis.choices else ray.tune.loguniform(axis.low, axis.high)
        for axis in axes
    }
    return {**space, _POPULATION: True} if settings.scheduler == "pbt" else space


def _searcher(settings: TuneSettings, axes: list[Axis], at_once: int) -> SearchAlgorithm | Searcher:
    """Where trials come from; the source's point is the first, and the seed decides the others.

    It also holds trials back until there is room: TuneConfig's max_concurrent_trials does nothing for the random one.
    """
    first = [source_point(axes)]
    if settings.search == "random":
        return BasicVariantGenerator(first, max_concurrent=at_once, random_state=settings.seed)
    from ray.tune.search.optuna import OptunaSearch

    optuna = OptunaSearch(metric="kid", mode="min", points_to_evaluate=first, seed=settings.seed)
    return ConcurrencyLimiter(optuna, max_concurrent=at_once)


def _scheduler(settings: TuneSettings, axes: list[Axis]) -> TrialScheduler:
    every = round(settings.judged_every * 1000)
    if settings.scheduler == "asha":
        # Longer than any trial, which is to come to its own end: Tune kills those that have reached it.
        longest = round(settings.trial_kimg * 1000) + settings.batch_size + 1
        return AsyncHyperBandScheduler(time_attr="images", max_t=longest, grace_period=every, reduction_factor=2)
    if settings.scheduler == "median":
        return MedianStoppingRule(time_attr="images", grace_period=every, min_samples_required=3)
    if settings.scheduler == "pbt":
        rates = {axis.name: ray.tune.loguniform(axis.low, axis.high) for axis in axes if axis.name.endswith("_lr")}
        if not rates:
            raise ConfigurationError("--scheduler: pbt changes learning rates in flight: name one in --space")
        return PopulationBasedTraining(
            time_attr="images", perturbation_interval=every, hyperparam_mutations=rates, quantile_fraction=0.25
        )
    return FIFOScheduler()


def _read(result: ray.tune.Result, settings: TuneSettings) -> TrialRecord:
    """A trial as Tune kept it, and its training as it went on: a judgement may come when that is further."""
    point = {name: value for name, value in (result.config or {}).items() if name != _POPULATION}
    metrics = result.metrics or {}
    record = TrialRecord(number=str(metrics.get("trial_id", "")), point=point)
    frame = result.metrics_dataframe
    if frame is not None and "kid" in frame:
        alive = frame[frame["kid"] < COLLAPSED]
        # By images: what a killed search had measured may have been told twice.
        record.curve = sorted({int(row.images): float(row.kid) for row in alive.itertuples()}.items())
        if len(alive):
            best = alive.loc[alive["kid"].idxmin()]
            record.kid, record.kid_at = float(best["kid"]), int(best["images"])
            record.checkpoint = str(best["checkpoint"])
            run = str(alive["run"].iloc[-1])
            history = History(storage.join(settings.storage, "runs", run, "metrics.jsonl"))
            record.images = max((int(each["images"]) for each in history.records), default=0)
            record.state = "finished" if is_finished(settings, run) else "stopped"
    if result.error is not None:
        record.state = "failed"
    elif metrics.get("kid", COLLAPSED) >= COLLAPSED:
        record.state = "collapsed"
    return record


def _conclude(
    settings: TuneSettings,
    base: TrainSettings,
    axes: list[Axis],
    trials: list[TrialRecord],
    record: RunRecord,
    log: tracking.Run,
) -> TuneResult:
    """Table, pictures and ``best.yaml``. Raises RayganError if no trial was ever judged."""
    full = round(settings.trial_kimg * 1000)
    ranked = sorted((trial for trial in trials if trial.kid < COLLAPSED), key=lambda trial: trial.kid)
    if not ranked:
        states = ", ".join(trial.state for trial in trials)
        raise RayganError(f"no trial of search {record.name} reported a KID ({states}): their logs are in MLflow")
    best = ranked[0]
    source = next((trial for trial in trials if trial.point == source_point(axes)), None)
    print(search_report.table(ranked, trials, source, full), flush=True)
    pictures = search_report.pictures(axes, ranked, trials, source)
    for name, content in pictures.items():
        storage.write_bytes(storage.join(record.folder, "pictures", name), content)
        log.log_bytes(content, f"pictures/{name}")
    chosen = settings_of(_full(settings), best.point).plain()
    kept = {name: value for name, value in chosen.items() if name not in _PERSONAL and value is not None}
    text = f"# The best of {len(trials)} trials of search {record.name}: KID {best.kid:.4g}\n" + yaml.safe_dump(
        kept, sort_keys=False
    )
    path = storage.join(record.folder, "best.yaml")
    storage.write_bytes(path, text.encode())
    log.log_bytes(text.encode(), "best.yaml")
    trained = sum(trial.images for trial in trials)
    log.log_metrics({"kid": best.kid, "images_trained": trained, "images_saved": full * len(trials) - trained}, 0)
    return TuneResult(log.id, best.point, best.kid, len(trials), path, storage.join(record.folder, "pictures"))


def _full(settings: TuneSettings) -> TrainSettings:
    """The training that the search is for."""
    return TrainSettings.model_validate({name: getattr(settings, name) for name in TrainSettings.model_fields})


class _Progress(ray.tune.Callback):
    """Shows how the search stands, and frees the disk of trials that can't be among the best any more."""

    def __init__(self, settings: TuneSettings, search: str):
        self._runs, self._search = storage.join(settings.storage, "runs"), search
        self._length = round(settings.trial_kimg * 1000)
        self._kids: dict[str, float] = {}
        self._images: dict[str, int] = {}
        self._ended: dict[str, str] = {}
        self._bar: tqdm | None = None
        self._trials = settings.trials

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a measurement."""
        number = trial.trial_id
        self._kids[number] = min(self._kids.get(number, math.inf), result.get("kid", math.inf))
        self._images[number] = max(self._images.get(number, 0), int(result.get("images", 0)))
        self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is finished or was stopped."""
        self._end(trial, "done", trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        self._end(trial, "failed", trials)

    def close(self) -> None:
        """Leave the last line standing."""
        if self._bar is not None:
            self._show([])
            self._bar.close()

    def _end(self, trial: Any, how: str, trials: list[Any]) -> None:
        self._ended[trial.trial_id] = how
        self._show(trials)
        ended = sorted((self._kids.get(number, math.inf), number) for number in self._ended)
        for _, number in ended[KEPT:]:
            try:
                storage.delete_folders(self._runs, f"{self._search}.{number}*/checkpoint_*")
            except RayganError as error:  # they only take room
                tqdm.write(f"warning: {error}", file=sys.stderr)

    def _show(self, trials: list[Any]) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._trials * self._length, desc="search", unit="img", unit_scale=True)
        # What a stopped trial will not train is done, as far as the time left goes.
        left_out = sum(self._length - self._images.get(number, 0) for number in self._ended)
        self._bar.total = self._trials * self._length - left_out
        running = sum(trial.status == "RUNNING" for trial in trials)
        failed = sum(how == "failed" for how in self._ended.values())
        best = min(self._kids.values(), default=math.inf)
        self._bar.set_postfix_str(
            f"{len(self._ended) - failed} done, {running} running, {failed} failed, best KID {best:.3g}", refresh=False
        )
        self._bar.update(sum(self._images.values()) - self._bar.n)
