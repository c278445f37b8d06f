"""The usefulness study: its grid, and a tiny study through Ray Tune."""

import json
import os

import pytest

from raygan import tracking
from raygan.classifier.settings import UsefulnessSettings
from raygan.classifier.usefulness.study import plan, study
from raygan.errors import ConfigurationError, RayganError
from tests.helpers import wait_for_cores

RESULT = {"accuracy": 0.123, "balanced_accuracy": 0.5, "auroc": 0.5, "ece": 0.5}


def settings_of(**changes):
    return UsefulnessSettings.model_validate({"data": "shards", "storage": "s", "tracking_uri": None, **changes})


def test_the_grid_has_every_mixture_at_every_size_and_cas_once_per_seed():
    own = plan(settings_of(seeds=2), photos=1000, labels=2)
    assert [(t.real, t.generated) for t in own if t.seed == 0] == [(100, 0), (100, 100), (100, 400)]
    trials = plan(settings_of(seeds=2, real_fractions=[1.0, 0.5], elsewhere=True), photos=1000, labels=2)
    first = [(t.real, t.generated) for t in trials if t.seed == 0]
    assert first == [(0, 1000), (100, 0), (400, 0), (1000, 0), (100, 100), (400, 400), (1000, 1000)]
    assert len(trials) == 14
    assert len({trial.key for trial in trials}) == 14
    assert trials[0].mixture == "generated only (CAS)"


@pytest.mark.parametrize(
    ("changes", "says"), [({"real_sizes": [5000]}, "more than the 1000"), ({"real_sizes": [9]}, "batch")]
)
def test_impossible_sizes_are_refused(changes, says):
    with pytest.raises(ConfigurationError, match=says):
        plan(settings_of(**changes), photos=1000, labels=2)


def test_a_generator_sees_photos_of_every_label():
    assert {trial.real for trial in plan(settings_of(), photos=1000, labels=120)} == {120}
    with pytest.raises(ConfigurationError, match=r"never sees some of the 120 labels .*: give 120 or more"):
        plan(settings_of(real_sizes=[100]), photos=1000, labels=120)
    plan(settings_of(real_sizes=[100], elsewhere=True), photos=1000, labels=120)  # it has seen others


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cpus_per_trial": 1000.0}, "--cpus-per-trial: no node"),
        ({"elsewhere": True}, "no generator draws cat"),
        ({"generator_preset": "bets-64"}, "'bets-64' is unknown"),
    ],
)
def test_an_impossible_study_is_refused_before_any_work(new_storage, write_shards, changes, says):
    settings = settings_of(data=str(write_shards()), storage=str(new_storage), **changes)
    with pytest.raises(RayganError, match=says):
        study(settings)
    assert not (new_storage / "studies").exists()


@pytest.fixture
def tiny(new_storage, write_shards, write_generator):
    """Settings of a study of three small trainings: CAS, 8 photos, and 8 photos with as many generated images."""
    return settings_of(
        data=str(write_shards(per_label=8)),
        storage=str(new_storage),
        real_sizes=[8],
        real_fractions=[1.0, 0.5],
        seeds=1,
        batch_size=4,
        images=8,
        model=[write_generator(label) for label in ("cat", "dog")],
        name="tiny",
        cpus_per_trial=1.9,  # two at a time, whose processes take seconds to start, with a thread each
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_in_which_every_training_diverged_is_not_finished(tiny, new_storage):
    folder = new_storage / "studies" / "tiny"
    (folder / "trials").mkdir(parents=True)
    for key in ("real0-generated24-seed0", "real8-generated0-seed0", "real8-generated8-seed0"):
        (folder / "trials" / f"{key}.json").write_text('{"diverged": true}')
    for _ in range(2):  # the same when asked again
        with pytest.raises(RayganError, match="all trainings diverged: give a lower --learning-rate"):
            study(tiny)
    assert json.loads((folder / "run.json").read_text())["state"] != "finished"
    # A larger grid with one training that finished is, and it names the kinds without a row.
    (folder / "trials" / "real16-generated0-seed0.json").write_text(json.dumps(RESULT))
    found = study(tiny.model_copy(update={"real_sizes": [8, 16], "real_fractions": [1.0]}))
    assert [(row.real, row.generated) for row in found.rows] == [(16, 0)]
    says = "real only, 8 real and 0 generated: 1 diverged, none finished"
    assert says in (folder / "table.txt").read_text().splitlines()
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


@pytest.mark.usefixtures("ray_cluster")
def test_a_generator_learns_from_the_draw_alone_and_all_other_photos_validate(tiny, new_storage):
    """24 photos to train on and 6 held out; the generators and classifiers see 8 of the 24."""
    settings = tiny.model_copy(
        update={
            "model": [],
            "generator_preset": "quick",
            "generator_kimg": 0.016,
            "seeds": 3,
            "real_fractions": [1.0, 0.5],
        }
    )
    folder = new_storage / "studies" / "tiny"
    # Of the third seed, only the training on photos alone is left to do.
    (folder / "trials").mkdir(parents=True)
    (folder / "trials" / "real8-generated8-seed2.json").write_text(json.dumps(RESULT))
    found = study(settings)
    wait_for_cores()
    assert [(row.real, row.generated, row.trainings) for row in found.rows] == [(8, 0, 3), (8, 8, 3)]
    assert {path.name for path in (folder / "generators").iterdir()} == {"real8-seed0", "real8-seed1"}
    saw = {}
    for seed in (0, 1):
        about = json.loads((folder / "generators" / f"real8-seed{seed}" / "generator.json").read_text())["about"]
        assert about == {"labels": ["cat", "dog"], "photos": 8, "kimg": 0.016}
        alone, mixed = (
            json.loads((folder / "trials" / f"real8-generated{count}-seed{seed}.json").read_text()) for count in (0, 8)
        )
        saw[seed] = {number for number, character in enumerate(mixed["right"]) if character == "-"}
        assert saw[seed] == {number for number, character in enumerate(alone["right"]) if character == "-"}
        assert len(mixed["right"]) == 30
        assert len(saw[seed]) == 8
        assert max(saw[seed]) < 24
        assert mixed["right"].count("1") / 22 == pytest.approx(mixed["accuracy"])
    assert saw[0] != saw[1]
    assert found.rows[1].gain is not None
    assert "on 22 photos that neither classifier nor generator saw" in (folder / "table.txt").read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_leaves_table_chart_and_run_and_resumes(tiny, new_storage):
    # One of the three trainings is done already, with a result that no training gives.
    done = new_storage / "studies" / "tiny" / "trials"
    done.mkdir(parents=True)
    (done / "real8-generated0-seed0.json").write_text(json.dumps(RESULT))
    found = study(tiny)
    wait_for_cores()
    assert [(row.real, row.generated) for row in found.rows] == [(0, 24), (8, 0), (8, 8)]
    assert found.rows[1].accuracy == 0.123
    assert {"table.csv", "table.txt", "usefulness.png", "trials"} <= set(os.listdir(found.folder))
    run = tracking.connect(tiny).get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert {"cas", "accuracy/real8", "accuracy/real8_generated8"} == set(run.data.metrics)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("shards", "0-8", "training")
    with pytest.raises(ConfigurationError, match="is finished"):
        study(tiny)
    # A larger grid of the same study keeps the results there are; only one of its trainings is missing.
    for key in ("real0-generated24-seed1", "real8-generated0-seed1", "real16-generated0-seed1"):
        (done / f"{key}.json").write_text(json.dumps({**RESULT, "accuracy": 0.323}))
    larger = study(tiny.model_copy(update={"real_sizes": [8, 16], "real_fractions": [1.0], "seeds": 2}))
    assert [(row.real, row.generated, row.trainings) for row in larger.rows] == [(0, 24, 2), (8, 0, 2), (16, 0, 2)]
    assert larger.rows[0].accuracy == pytest.approx((found.rows[0].accuracy + 0.323) / 2)
    assert larger.rows[1].accuracy == pytest.approx((0.123 + 0.323) / 2)
    metrics = tracking.connect(tiny).get_run(larger.run_id).data.metrics
    for name, row in zip(("cas", "accuracy/real8", "accuracy/real16"), larger.rows, strict=True):
        assert metrics[name] == pytest.approx(row.accuracy), name
