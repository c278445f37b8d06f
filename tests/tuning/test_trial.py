"""Trials that are resumed, of whose every KID Tune must hear, and the checkpoints that they take over."""

import json
import pickle
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.runtime import cluster
from raygan.training.events import Quality
from raygan.training.monitor import start_measuring, with_network
from raygan.training.trainer import Shared
from raygan.tuning import trial
from raygan.tuning.progress import SearchProgress
from raygan.tuning.search import SparingHalving, SparingMedianRule
from raygan.tuning.trial import POPULATION, run_trial
from raygan.tuning.tune import trial_base
from tests.conftest import takes_long
from tests.helpers import wait_for_cores

#: Full name of the trials' KID.
KID = "kid16_efficientnet_lite0"


@takes_long
@pytest.mark.usefixtures("ray_cluster")
def test_a_resumed_trial_measures_nothing_twice_and_reports_what_tune_may_not_have_heard(
    search_settings, new_storage, monkeypatch
):
    base = with_network(trial_base(search_settings(trial_kimg=0.04, judgements=1)))
    data = DataSet.open(base.data)
    cluster.connect(base)
    photos, held_out = (load_photos(data, split, None) for split in ("train", "validation"))
    shared = Shared(photos, held_out, *start_measuring(base, photos, held_out))
    run = new_storage / "runs" / "search.0"

    def reports():
        """What the trial reports, as one that Tune has started again."""
        reported = []
        with monkeypatch.context() as patch:
            patch.setattr(ray.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "0"))
            patch.setattr(ray.tune, "get_checkpoint", lambda: None)
            patch.setattr(ray.tune, "report", lambda metrics, checkpoint=None: reported.append(metrics))
            run_trial({"generator_lr": 1e-4, "z_dim": 4}, base, shared, "search", "parent")
        assert json.loads((run / "run.json").read_text())["state"] == "finished"
        return reported

    (first,) = reports()
    assert first["kid"] == first[KID]
    assert first["run"] == "search.0"
    assert reports() == [first]  # finished, but Tune did not record it
    # The driver died after the KID was measured, and before it heard of it: only the checkpoint knows.
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, "state": "running"}))
    (run / "judged.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert sum(KID in line for line in lines) == 1
    (run / "metrics.jsonl").write_text("".join(line for line in lines if KID not in line))
    assert reports() == [first]
    assert sum(KID in line for line in (run / "metrics.jsonl").read_text().splitlines()) == 1
    wait_for_cores()


@pytest.mark.parametrize("finished", [False, True])
def test_a_trial_that_has_nothing_left_to_measure_reports_what_tune_may_not_have_heard(
    search_settings, new_storage, monkeypatch, finished
):
    base = trial_base(search_settings(trial_kimg=0.04, judgements=1))
    run = new_storage / "runs" / "search.0"
    run.mkdir(parents=True)
    measured = {"kid": 0.5, "images": 40, "checkpoint": "somewhere", "run": "search.0"}
    (run / "judged.json").write_text(json.dumps({"reports": [measured]}))
    reported, trained = [], []
    monkeypatch.setattr(trial, "is_finished", lambda settings, name: finished)
    monkeypatch.setattr(trial, "train", lambda settings, told: trained.append(settings.name))
    monkeypatch.setattr(ray.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "0"))
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.tune, "report", lambda metrics, checkpoint=None: reported.append(metrics))
    run_trial({"generator_lr": 1e-4}, base, None, "search", "parent")
    assert reported == [measured]
    assert trained == ([] if finished else ["search.0"])


@pytest.mark.parametrize("left", [["generator.json"], [], None])
def test_a_checkpoint_that_is_deleted_while_it_is_copied_costs_no_trial_and_is_given_to_none(
    search_settings, tmp_path, monkeypatch, left
):
    base = trial_base(search_settings(trial_kimg=0.04, judgements=1))
    whole = ["generator.json", "generator.safetensors", "training.json", "training.safetensors"]
    reported = []

    def report(metrics, checkpoint=None):
        """As Tune reports: it copies the checkpoint's files that are there."""
        files = None
        if checkpoint is not None:
            listed = checkpoint.filesystem.get_file_info(pafs.FileSelector(checkpoint.path))
            files = sorted(info.base_name for info in listed)
        reported.append((metrics["images"], files))

    def train(settings, told):
        for images, files in ((16, whole), (32, left)):
            if files is not None:
                (tmp_path / str(images)).mkdir()
                for name in files:
                    (tmp_path / str(images) / name).write_text("{}")
            told.told(Quality({}, images, 0.5, str(tmp_path / str(images))))

    monkeypatch.setattr(ray.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "0"))
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.tune, "report", report)
    monkeypatch.setattr(trial, "train", train)
    run_trial({"generator_lr": 1e-4, POPULATION: True}, base, None, "search", "parent")
    assert reported == [(16, whole), (32, None)]


def test_checkpoints_of_the_best_trials_and_of_the_baseline_stay(search_settings, new_storage):
    baseline = {"generator_lr": 0.00035}
    progress = SearchProgress(search_settings(), "search", baseline)
    kids = {"a": 9.0, "b": 0.5, "c": 0.1, "d": 0.4, "e": 0.2, "f": 0.3}  # the baseline is the worst
    trials = [
        SimpleNamespace(trial_id=name, status="RUNNING", config=baseline if name == "a" else {"generator_lr": 0.001})
        for name in kids
    ]
    for each in trials:
        (new_storage / "runs" / f"search.{each.trial_id}" / "checkpoint_1").mkdir(parents=True)
        progress.on_trial_result(1, trials, each, {"kid": kids[each.trial_id], "images": 40})
        progress.on_trial_complete(1, trials, each)
    progress.close()
    left = sorted(folder.parent.name[-1] for folder in new_storage.glob("runs/*/checkpoint_1"))
    assert left == ["a", "c", "e", "f"]


def test_a_resumed_search_shows_what_earlier_sessions_have_done(search_settings, capsys):
    """Ray Tune keeps the state, and gives it to another instance."""
    settings = search_settings(trials=3, trial_kimg=0.04)
    ended, stopped, failed = (SimpleNamespace(trial_id=name, status="PENDING", config={}) for name in "abc")
    first = SearchProgress(settings, "search")
    for each in (ended, stopped, failed):
        first.on_trial_start(1, [], each)
        first.on_trial_result(1, [], each, {"kid": 0.5, "images": 16})
    first.on_trial_result(1, [], ended, {"kid": 0.25, "images": 40})
    first.on_trial_complete(1, [], ended)
    first.on_trial_error(1, [], failed)
    first.close()
    capsys.readouterr()
    made = SearchProgress(settings, "search")
    resumed = pickle.loads(pickle.dumps(made))  # noqa: S301
    resumed.set_state(json.loads(json.dumps(first.get_state())))
    resumed.on_trial_start(2, [], failed)
    resumed.on_trial_result(2, [], failed, {"kid": 0.75, "images": 20})
    made.close()
    resumed.on_experiment_end([])  # by a search that is being stopped
    last = capsys.readouterr().err.split("\r")[-1]
    assert "76.0/120" in last
    assert "1 done, 0 running, 0 failed, best KID 0.25" in last


@pytest.mark.parametrize(
    ("sparing", "plain", "options"),
    [
        (SparingHalving, AsyncHyperBandScheduler, {"max_t": 100, "reduction_factor": 2}),
        (SparingMedianRule, MedianStoppingRule, {"min_samples_required": 2}),
    ],
)
def test_schedulers_stop_bad_trials_but_not_the_baseline(sparing, plain, options):
    """Otherwise they decide as Ray's do; the baseline is the worst of all."""
    baseline = {"generator_lr": 0.00035}
    kids = {"b": 0.5, "c": 0.1, "d": 0.6, "a": 9.0}
    decided = {}
    for kind, given in ((plain, ()), (sparing, (baseline,))):
        trials = [
            Trial("run_trial", trial_id=name, stub=True, config=baseline if name == "a" else {"generator_lr": 0.001})
            for name in kids
        ]
        scheduler = kind(*given, time_attr="images", grace_period=10, **options)
        scheduler.set_search_properties("kid", "min")
        controller = SimpleNamespace(get_live_trials=lambda: [])
        for each in trials:
            scheduler.on_trial_add(controller, each)
        alive = dict.fromkeys(kids, TrialScheduler.CONTINUE)
        for images in (10, 20, 40, 80):
            for each in trials:
                if alive[each.trial_id] == TrialScheduler.CONTINUE:
                    result = {"images": images, "kid": kids[each.trial_id]}
                    alive[each.trial_id] = scheduler.on_trial_result(controller, each, result)
        decided[kind] = alive
    assert decided[plain]["a"] == decided[plain]["d"] == TrialScheduler.STOP
    assert decided[sparing] == {**decided[plain], "a": TrialScheduler.CONTINUE}


def test_a_checkpoint_that_a_waiting_trial_is_to_take_over_stays(search_settings, tmp_path):
    """Trial b waits for cores while trial a goes on; once b has its own checkpoint, a's goes as all others do."""
    progress = SearchProgress(search_settings(), "search")
    a, b = (SimpleNamespace(trial_id=name, checkpoint=None) for name in "ab")

    def saves(one, name):
        (tmp_path / name).mkdir()
        checkpoint = ray.tune.Checkpoint(str(tmp_path / name))
        progress.on_checkpoint(1, [a, b], one, checkpoint)
        one.checkpoint = checkpoint

    saves(a, "a0")
    b.checkpoint = a.checkpoint
    for number in range(1, 8):
        saves(a, f"a{number}")
    assert sorted(folder.name for folder in tmp_path.glob("a?")) == ["a0", "a4", "a5", "a6", "a7"]
    saves(b, "b0")
    saves(a, "a8")
    assert sorted(folder.name for folder in tmp_path.glob("[ab]?")) == ["a5", "a6", "a7", "a8", "b0"]
