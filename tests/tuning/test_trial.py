"""A trial resumed after its driver died: Tune must hear of every KID."""

import json
from types import SimpleNamespace

import pytest
import ray.tune

from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.runtime import cluster
from raygan.training.events import Quality
from raygan.training.monitor import start_measuring, with_network
from raygan.training.trainer import Shared
from raygan.tuning import trial
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
    wait_for_cores(8)


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


def test_a_checkpoint_that_is_deleted_while_tune_copies_it_costs_no_trial(search_settings, tmp_path, monkeypatch):
    base = trial_base(search_settings(trial_kimg=0.04, judgements=1))
    reported = []

    def report(metrics, checkpoint=None):
        """As Tune reports: it copies the checkpoint first."""
        if checkpoint is not None:
            with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/generator.json") as file:
                file.read()
        reported.append((metrics["images"], checkpoint is not None))

    def train(settings, told):
        for images, kept in ((16, True), (32, False)):
            folder = tmp_path / str(images)
            if kept:
                folder.mkdir()
                (folder / "generator.json").write_text("{}")
            told.told(Quality({}, images, 0.5, str(folder)))

    monkeypatch.setattr(ray.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "0"))
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.tune, "report", report)
    monkeypatch.setattr(trial, "train", train)
    run_trial({"generator_lr": 1e-4, POPULATION: True}, base, None, "search", "parent")
    assert reported == [(16, True), (32, False)]
