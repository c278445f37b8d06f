"""The usefulness study: its grid, its table, and a tiny one through Ray Tune."""

from __future__ import annotations

import json
import os

import pytest

from raygan import tracking
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.usefulness import Trial, in_words, plan, study, summarise
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import Generator, NetworkSettings, save_generator


def settings_of(**changes):
    return UsefulnessSettings.model_validate({"data": "shards", "storage": "s", "tracking_uri": None, **changes})


def test_the_grid_has_every_mixture_at_every_size_and_cas_once_a_seed():
    trials = plan(settings_of(seeds=2, real_fractions=[1.0, 0.5]), photos=1000)
    first = [(t.real, t.generated) for t in trials if t.seed == 0]
    assert first == [(0, 1000), (100, 0), (400, 0), (1000, 0), (100, 100), (400, 400), (1000, 1000)]
    assert len(trials) == 14
    assert len({trial.key for trial in trials}) == 14
    assert trials[0].mixture == "generated only (CAS)"


@pytest.mark.parametrize(
    ("changes", "says"), [({"real_sizes": [5000]}, "more than the 1000"), ({"real_sizes": [9]}, "batch")]
)
def test_sizes_that_cannot_be_are_said(changes, says):
    with pytest.raises(ConfigurationError, match=says):
        plan(settings_of(**changes), photos=1000)


def test_the_table_says_what_helps_and_what_hurts():
    def result(accuracy):
        return {"accuracy": accuracy, "balanced_accuracy": accuracy, "auroc": 0.9, "ece": 0.1}

    results = {}
    # Gains of 9, 10 and 11 points, of -1, 0 and 4, and of -4, -5 and -6.
    for seed, (few, some, many) in enumerate([(0.09, -0.01, -0.04), (0.10, 0.0, -0.05), (0.11, 0.04, -0.06)]):
        apart = 0.02 * seed  # what seeds have in common doesn't count
        results[Trial(100, 0, 1.0, seed)] = result(0.80 + apart)
        results[Trial(100, 100, 0.5, seed)] = result(0.80 + apart + few)
        results[Trial(400, 0, 1.0, seed)] = result(0.90 + apart)
        results[Trial(400, 400, 0.5, seed)] = result(0.90 + apart + some)
        results[Trial(400, 1600, 0.2, seed)] = result(0.90 + apart + many)
        results[Trial(0, 1000, 0.0, seed)] = result(0.60)
    rows = summarise(results, images=2000)
    assert rows[0].accuracy == pytest.approx(0.82)
    assert rows[0].deviation == pytest.approx(0.02)
    assert [row.passes for row in rows] == [20, 10, 5, 2.5, 1, 2]
    words = in_words(rows, photos=155)
    # Student's t of 2 degrees of freedom is 4.303 at 97.5 %: 10 +- 4.303 * 1 / sqrt(3), and so on.
    assert "100 generated beside 100 real: +10.0% (95 % interval +7.5% to +12.5%), helps" in words
    assert "400 generated beside 400 real: +1.0% (95 % interval -5.6% to +7.6%), no clear change" in words
    assert "1,600 generated beside 400 real: -5.0% (95 % interval -7.5% to -2.5%), hurts" in words
    assert "generated only (CAS)" in words
    assert "on 155 validation photos" in words


def test_trainings_that_diverged_are_counted_and_left_out_of_means():
    result = {"accuracy": 0.8, "balanced_accuracy": 0.8, "auroc": 0.9, "ece": 0.1}
    trials = {Trial(100, 0, 1.0, 0): result, Trial(100, 0, 1.0, 1): {"diverged": True}}
    (row,) = summarise(trials, images=100)
    assert (row.trainings, row.diverged, row.accuracy) == (1, 1, 0.8)
    assert "80.0%, 1 diverged" in in_words([row], photos=10)


def test_one_training_of_each_gives_no_verdict():
    result = {"accuracy": 0.8, "balanced_accuracy": 0.8, "auroc": 0.9, "ece": 0.1}
    trials = {Trial(100, 0, 1.0, 0): result, Trial(100, 100, 0.5, 0): {**result, "accuracy": 0.9}}
    words = in_words(summarise(trials, images=100), photos=10)
    assert "+10.0%, of one training each" in words
    assert "80.0% ±" not in words


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_that_cannot_be_is_said_before_work_starts(new_storage, write_shards):
    for changes, says in (
        ({"cpus_per_trial": 1000.0}, "--cpus-per-trial: no node"),
        ({}, "no generator draws cat"),
    ):
        settings = settings_of(data=str(write_shards(folder=f"s{len(changes)}")), storage=str(new_storage), **changes)
        with pytest.raises(RayganError, match=says):
            study(settings)
    assert not (new_storage / "studies").exists()


@pytest.fixture
def tiny(new_storage, write_shards, tmp_path):
    """Settings of a study of three small trainings: CAS, 8 photos, and 8 with as many generated images."""
    folders = []
    for label in ("cat", "dog"):
        folders.append(str(tmp_path / label))
        network = NetworkSettings(image_size=32, z_dim=4, width=2)
        save_generator(tmp_path / label, Generator(network), {"label": label})
    return settings_of(
        data=str(write_shards(per_label=8)),
        storage=str(new_storage),
        real_sizes=[8],
        real_fractions=[1.0, 0.5],
        seeds=1,
        batch_size=4,
        images=8,
        model=folders,
        name="tiny",
        cpus_per_trial=2.0,
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_of_which_all_trainings_diverged_is_not_finished(tiny, new_storage):
    folder = new_storage / "studies" / "tiny"
    (folder / "trials").mkdir(parents=True)
    for key in ("real0-generated24-seed0", "real8-generated0-seed0", "real8-generated8-seed0"):
        (folder / "trials" / f"{key}.json").write_text('{"diverged": true}')
    for _ in range(2):  # and it isn't when it is asked again
        with pytest.raises(RayganError, match="all trainings diverged: give a lower --learning-rate"):
            study(tiny)
    assert json.loads((folder / "run.json").read_text())["state"] != "finished"
    # A larger grid in which one came to its end is, and says what has no row.
    result = {"accuracy": 0.8, "balanced_accuracy": 0.8, "auroc": 0.9, "ece": 0.1}
    (folder / "trials" / "real16-generated0-seed0.json").write_text(json.dumps(result))
    found = study(tiny.model_copy(update={"real_sizes": [8, 16], "real_fractions": [1.0]}))
    assert [(row.real, row.generated) for row in found.rows] == [(16, 0)]
    says = "real only, 8 real and 0 generated: 1 diverged, none came to an end"
    assert says in (folder / "table.txt").read_text().splitlines()
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_leaves_table_chart_and_run_and_goes_on_where_it_stopped(tiny, new_storage):
    settings = tiny
    # One of the three trainings is done already, with a result that no training gives.
    done = new_storage / "studies" / "tiny" / "trials"
    done.mkdir(parents=True)
    result = {"accuracy": 0.123, "balanced_accuracy": 0.5, "auroc": 0.5, "ece": 0.5}
    (done / "real8-generated0-seed0.json").write_text(json.dumps(result))
    found = study(settings)
    assert [(row.real, row.generated) for row in found.rows] == [(0, 24), (8, 0), (8, 8)]
    assert found.rows[1].accuracy == 0.123
    assert {"table.csv", "table.txt", "usefulness.png", "trials"} <= set(os.listdir(found.folder))
    run = tracking.connect(settings).get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert {"cas", "accuracy/real8", "accuracy/real8_generated8"} == set(run.data.metrics)
    with pytest.raises(ConfigurationError, match="is finished"):
        study(settings)
    # A larger grid of the same study takes over what is there, and all but one of its trainings are.
    for key in ("real0-generated24-seed1", "real8-generated0-seed1", "real16-generated0-seed1"):
        (done / f"{key}.json").write_text(json.dumps({**result, "accuracy": 0.323}))
    larger = study(settings.model_copy(update={"real_sizes": [8, 16], "real_fractions": [1.0], "seeds": 2}))
    assert [(row.real, row.generated, row.trainings) for row in larger.rows] == [(0, 24, 2), (8, 0, 2), (16, 0, 2)]
    assert larger.rows[0].accuracy == pytest.approx((found.rows[0].accuracy + 0.323) / 2)
    assert larger.rows[1].accuracy == pytest.approx((0.123 + 0.323) / 2)
    metrics = tracking.connect(settings).get_run(larger.run_id).data.metrics
    for name, row in zip(("cas", "accuracy/real8", "accuracy/real16"), larger.rows, strict=True):
        assert metrics[name] == pytest.approx(row.accuracy), name
