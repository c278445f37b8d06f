"""Tune: a search over trainings, on whatever cluster there is.

1. `tune` checks what it can, has shards read once for all trials, measures KID's reference once, and starts
   the search (`raygan.tuning.search`).
2. Each trial (`raygan.tuning.trial`) is a real training with its own Ray Train workers, at one point of the space
   (`raygan.tuning.space`); its MLflow run is a child of the search's. After each KID it reports to Tune, whose
   scheduler may stop it or, with PBT, hand it a better trial's checkpoint.
3. At the end `raygan.tuning.report` draws what was found, and ``best.yaml`` is written for `jobs/train.py --config`.

A search lives in ``<storage>/searches/<name>``; the same command resumes it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.tune
import yaml

from raygan import tracking
from raygan.addresses import slug
from raygan.data.photos import open_photos
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import NetworkSettings
from raygan.runtime import capacity, cluster, reservations, storage
from raygan.runtime.runs import RunRecord, begun_with, is_finished, recorded
from raygan.runtime.settings import StorageSettings, WorkerOptions
from raygan.training.build import network_settings
from raygan.training.inherit import Inheritance
from raygan.training.monitor import start_measuring, with_network
from raygan.training.settings import NetworkOptions, TrainSettings
from raygan.training.source import BEGUN_FROM, keep_source
from raygan.training.train import check, check_room, train
from raygan.training.trainer import Shared
from raygan.tuning import report
from raygan.tuning.progress import KEPT
from raygan.tuning.search import run_search
from raygan.tuning.settings import SearchOptions, TuneSettings
from raygan.tuning.space import Axis, baseline_point, parse_space, settings_of, try_values
from raygan.tuning.trial import COLLAPSED, NAME_EXTENSION, TrialRecord, run_trial
from raygan.tuning.winner import measure_winner, rates_of

#: Settings that may differ when a search is resumed.
MAY_CHANGE = {
    *WorkerOptions.model_fields,
    *StorageSettings.model_fields,
    *("data", "name", "promote", "allow_changes", "concurrent", "train_best"),
}

#: Settings that belong to this search or its user, and so don't go into ``best.yaml``.
_PERSONAL = {*StorageSettings.model_fields, "data", "name", "allow_changes", "promote"}


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        run_id: of the search's MLflow run.
        best: values of the searched settings in the best trial.
        kid: the best trial's, on samples and photos that did not choose it, if photos could be held back.
        searched_kid: the KID by which it was chosen, the lowest of all.
        better: whether it beats the baseline, trained as long, by more than the standard error; None if unknown.
        trials: how many there were.
        settings_file: address of ``best.yaml``.
        pictures: address of the folder of pictures.
    """

    run_id: str
    best: dict[str, Any]
    kid: float
    searched_kid: float
    better: bool | None
    trials: int
    settings_file: str
    pictures: str

    def to_json(self) -> str:
        """The job's last line."""
        return json.dumps(asdict(self))


def tune(settings: TuneSettings) -> TuneResult:
    """Search for the best settings, resuming an interrupted search of the same name.

    Raises:
        ConfigurationError: the space, the shards or the cluster don't fit the settings.
        RayganError: no trial measured a KID, or anything else failed; the message says what to do.
    """
    base = trial_base(settings)
    axes = parse_space(settings.space, base)
    data = check(base)
    try_values([axis for axis in axes if axis.name == "batch_size"], base, check)
    tracking.check_records(settings)
    cluster.connect(settings)
    begun = begun_with(settings, settings.name, "searches")
    base = with_network(base, begun)
    resources = capacity.place(base)
    room = capacity.room(resources) // base.fewest_workers
    concurrent = begun.get("concurrent", settings.concurrent)
    if settings.concurrent not in (None, concurrent):
        print(
            "--concurrent has no effect: a resumed search runs as many trials at a time as it began with",
            file=sys.stderr,
        )
    at_once = min(settings.trials, concurrent or max(1, room))  # no room yet: a cluster may add nodes
    networks = network_settings(base, tuple(data.manifest.classes) if base.conditional else ())
    check_room(base, networks, runs=at_once + KEPT)
    name = settings.name or time.strftime(f"search-{slug(settings.label or 'all', 60, ascii_only=True)}-%Y%m%d-%H%M%S")
    full_length = f"{name}-best"
    record = RunRecord.open(
        # With the classifier pinned: all trials are judged by the same network.
        settings.model_copy(update={"quality_network": base.quality_network, "concurrent": concurrent}),
        name,
        data.manifest.fingerprint,
        may_change=MAY_CHANGE,
        under="searches",
        unfinished=settings.train_best and not is_finished(settings, full_length),
        extension=NAME_EXTENSION,
    )
    base, begins = _with_source(base, axes, networks, record)
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
        log.log_data(storage.public(data.address), data.manifest.fingerprint, data.profile)
        print(f"search {name} in {record.folder}; --name {name} resumes it", flush=True)
        if begins:
            print(f"each trial {begins}", flush=True)
        try:
            with reservations.returned_cores():
                trainable = _trainable(base, data, record, log, at_once)
                trials = run_search(settings, axes, trainable, record, at_once)
        except BaseException:
            tracking.kill_children(log)
            raise
        tracking.close_children(settings, log)
        result = conclude(settings, base, axes, trials, record, log)
        record.save(state="finished")
    if settings.train_best:
        best = settings_of(_full_length(settings), result.best)
        own = {"name": full_length, "begin_from": base.begin_from}
        print(train(best.model_copy(update=own)).to_json(), flush=True)
    return result


def trial_base(settings: TuneSettings) -> TrainSettings:
    """The settings that all trials share. Raises ConfigurationError if they can't be compared by KID."""
    if settings.minutes is not None:
        raise ConfigurationError("--minutes: trials are compared at the same number of images: give --trial-kimg")
    if settings.quality_every == 0:
        raise ConfigurationError("--quality-every: a search needs the KID that 0 switches off: leave it out")
    every = settings.judged_every
    cadence = {"kimg": settings.trial_kimg, "quality_every": every, "checkpoint_every": every, "snapshot_every": every}
    values = {**_full_length(settings).model_dump(), **cadence, "keep_checkpoints": 1, "promote": False}
    return TrainSettings.model_validate(values)


def conclude(
    settings: TuneSettings,
    base: TrainSettings,
    axes: Sequence[Axis],
    trials: Sequence[TrialRecord],
    record: RunRecord,
    log: tracking.Run,
) -> TuneResult:
    """Print the table, measure the best trial afresh, and write pictures and ``best.yaml``.

    Args:
        settings: of the search.
        base: of all trials, with the feature network as workers load it.
        axes: the space.
        trials: all of them.
        record: the search's folder and name.
        log: the search's MLflow run.

    Raises:
        RayganError: no trial measured a KID.
    """
    full = round(settings.trial_kimg * 1000)
    ranked = sorted((trial for trial in trials if trial.kid < COLLAPSED), key=lambda trial: trial.kid)
    if not ranked:
        states = ", ".join(trial.state for trial in trials)
        raise RayganError(f"no trial of search {record.name} reported a KID ({states}): their logs are in MLflow")
    best = ranked[0]
    baseline = next((trial for trial in trials if trial.point == baseline_point(axes)), None)
    print(report.table(ranked, trials, baseline, full), flush=True)
    winner = measure_winner(base, best, baseline)
    print(winner.summary, flush=True)
    log.log_tags({"winner": winner.summary[:5000]})
    for name, content in report.pictures(axes, ranked, trials, baseline).items():
        storage.write_bytes(storage.join(record.folder, "pictures", name), content)
        log.log_bytes(content, f"pictures/{name}")
    point = best.point | rates_of(best)
    chosen = settings_of(_full_length(settings), point).plain()
    kept = {name: value for name, value in chosen.items() if name not in _PERSONAL and value is not None}
    text = f"# The best of {len(trials)} trials of search {record.name}, chosen by its KID of {best.kid:.4g}.\n"
    text += "".join(f"# {line}\n" for line in winner.summary.splitlines())
    if best.is_kept:
        text += f"# Its weights, to train on from: --begin-from {best.checkpoint}\n"
    text += yaml.safe_dump(kept, sort_keys=False)
    path = storage.join(record.folder, "best.yaml")
    storage.write_bytes(path, text.encode())
    log.log_bytes(text.encode(), "best.yaml")
    trained = sum(trial.images for trial in trials)
    counts = {"images_trained": trained, "images_saved": full * len(trials) - trained}
    log.log_metrics({"kid": best.kid, **winner.metrics, **counts}, 0)
    kid = winner.kid if winner.kid is not None else best.kid
    pictures = storage.join(record.folder, "pictures")
    return TuneResult(log.id, point, kid, best.kid, winner.better, len(trials), path, pictures)


def _with_source(
    base: TrainSettings, axes: Sequence[Axis], networks: NetworkSettings, record: RunRecord
) -> tuple[TrainSettings, str | None]:
    """The trials' settings, beginning with weights in the search's folder, and where these are from, in words.

    A name may mean another version tomorrow, and trials are compared only if they begin alike.

    Raises:
        ConfigurationError: `begin_from` can't give weights to every trial's networks.
    """
    begins = keep_source(base, networks, record)
    if base.begin_from is None:
        return base, None
    kept = storage.join(record.folder, BEGUN_FROM)
    folder = Path(storage.local_folder(kept))
    shapes = [axis for axis in axes if axis.name in NetworkOptions.model_fields]
    try_values(shapes, base, lambda settings: Inheritance.of(folder, network_settings(settings, networks.labels)))
    return base.model_copy(update={"begin_from": kept}), begins


def _trainable(base: TrainSettings, data: DataSet, record: RunRecord, log: tracking.Run, at_once: int) -> Any:
    """A trial, as Tune calls it, with what all trials share in the object store."""
    photos = load_photos(data, "train", base.label, base.data_memory)
    held_out = open_photos(data, "validation", base.label)
    shared = Shared(photos, held_out, *start_measuring(base, photos, held_out, at_once))
    return ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, base=base, shared=shared, search=record.name, parent=log.id),
        {"memory": 2**20},  # cores are for the training's workers; Tune wants something reserved
    )


def _full_length(settings: TuneSettings) -> TrainSettings:
    """The training that the search is for."""
    return TrainSettings.model_validate({name: getattr(settings, name) for name in TrainSettings.model_fields})
