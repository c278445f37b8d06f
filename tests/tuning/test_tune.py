"""Whole searches: trials are real trainings, and `jobs/train.py` takes what is found."""

import functools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import ray
import torch
import yaml
from PIL import Image
from ray.tune.schedulers import PopulationBasedTraining

from raygan import tracking
from raygan.cli import parse
from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.runtime.runs import RunRecord
from raygan.settings import validate
from raygan.training.inherit import Inheritance
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings
from raygan.tuning.space import parse_space
from raygan.tuning.tune import MAY_CHANGE, _with_source, trial_base, tune
from tests.conftest import takes_long
from tests.helpers import CORES, outputs, start_job, wait_for_cores, wait_until

#: Full name of the trials' KID.
KID = "kid16_efficientnet_lite0"


@pytest.mark.parametrize(
    ("changes", "says"), [({"minutes": 3}, "--minutes"), ({"quality_every": 0}, "--quality-every")]
)
def test_a_search_needs_kid_and_a_length_in_images(changes, says):
    with pytest.raises(ConfigurationError, match=says):
        trial_base(validate(TuneSettings, {"data": "x", **changes}))


def test_trials_measure_kid_at_the_cadence_of_the_search():
    trial = trial_base(validate(TuneSettings, {"data": "x", "trial_kimg": 30, "judgements": 6, "epochs": 7}))
    assert (trial.kimg, trial.quality_every, trial.promote) == (30, 5, "never")


def test_a_search_is_resumed_by_the_name_that_it_printed(search_settings):
    first = search_settings(name=None)

    def opened(**changes):
        settings = first.model_copy(update=changes)
        return RunRecord.open(settings, "search-all-1", "f", may_change=MAY_CHANGE, under="searches")

    opened().save(state="running")
    assert opened(name="search-all-1").resumed
    with pytest.raises(ConfigurationError, match=r"\(trials was 2, now 3\): give another --name$"):
        opened(trials=3)


def test_all_trials_begin_with_the_weights_that_a_name_meant_when_the_search_began(search_settings, tmp_path):
    """A training beside the search may promote another version meanwhile."""
    networks = NetworkSettings(image_size=32, z_dim=8, width=4)
    generators = []
    for seed in range(2):
        torch.manual_seed(seed)
        generators.append(build_generator(networks))
        save_generator(tmp_path / str(seed), generators[-1], {})
    shutil.copytree(tmp_path / "0", tmp_path / "named")
    settings = search_settings(begin_from=str(tmp_path / "named"))
    base, folder = trial_base(settings), str(tmp_path / "search")
    rates = parse_space(["generator_lr=1e-4..1e-3"], base)
    first, said = _with_source(base, rates, networks, RunRecord("search", folder, {}, resumed=False))
    assert said.startswith(f"begins with {tmp_path / 'named'}: takes the generator")
    shutil.rmtree(tmp_path / "named")
    shutil.copytree(tmp_path / "1", tmp_path / "named")
    resumed, _ = _with_source(base, rates, networks, RunRecord("search", folder, {}, resumed=True))
    assert first.begin_from == resumed.begin_from
    kept = Inheritance.of(Path(resumed.begin_from), networks).generator
    assert all(torch.equal(kept[name], value) for name, value in generators[0].state_dict().items())
    with pytest.raises(ConfigurationError, match="--space: z_dim can't be 4: --begin-from: its networks have z_dim 8"):
        _with_source(base, parse_space(["z_dim=8,4"], base), networks, RunRecord("search", folder, {}, resumed=True))


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_has_room_for(search_settings):
    with pytest.raises(ConfigurationError, match="do not fit"):
        tune(search_settings(num_workers=2, cpus_per_worker=CORES - 1.0))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=takes_long)])
def test_a_stopped_search_resumes_and_finds_what_train_takes(search_settings, capsys, stop):
    settings = search_settings()
    client = tracking.connect(settings)
    stop_in_the_second_trial(settings, client, stop)
    stopped = {run.info.run_id: run.info.status for run in all_runs(client)}
    told = "KILLED" if stop == signal.SIGINT else "RUNNING"
    assert sorted(stopped.values()) == ["FINISHED", told, told]
    (done,) = trials(client, "attributes.status = 'FINISHED'")
    result = tune(settings)
    wait_for_cores()  # those of a stopped trial included
    children = trials(client)
    assert len(children) == 2
    # Resumed, not begun again.
    assert stopped.keys() == {result.run_id, *(run.info.run_id for run in children)}
    assert done.info in [run.info for run in children]
    assert client.get_run(result.run_id).info.status == "FINISHED"
    # The second trial is stopped if it is worse than the first was.
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {result.run_id}
    points = [(run.data.params["generator_lr"], run.data.params["z_dim"]) for run in children]
    # The baseline comes first, although its z_dim is outside this space.
    assert ("0.00035", "200") in points
    earlier, later = sorted(children, key=lambda run: run.info.start_time)
    assert earlier.info.end_time <= later.info.start_time  # one at a time, as asked for
    kids = [m.value for run in children for m in client.get_metric_history(run.info.run_id, KID)]
    assert result.kid == pytest.approx(min(kids))
    assert "(baseline)" in capsys.readouterr().out
    assert not tracking.serving_generators(client)  # trials promote nothing
    line = json.loads(result.to_json())
    assert line.pop("searched_kid") == result.kid  # six validation photos are too few to hold any back
    assert line.pop("better") is None
    assert set(line) == {"run_id", "best", "kid", "trials", "settings_file", "pictures"}
    check_settings_file(result, settings)
    check_pictures(result)
    with pytest.raises(ConfigurationError, match="is finished"):
        tune(settings)


@takes_long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_a_population_copies_weights_and_the_best_is_trained_to_full_length(
    search_settings, new_storage, capsys, monkeypatch
):
    # In step with each other, the worse of two trials always copies the better one.
    in_step = functools.partial(PopulationBasedTraining, synch=True)
    monkeypatch.setattr("raygan.tuning.search.PopulationBasedTraining", in_step)
    settings = search_settings(concurrent=2, cpus_per_worker=CORES / 2, scheduler="pbt", epochs=1, train_best=True)
    result = tune(settings)
    wait_for_cores()
    folders = list((new_storage / "runs").iterdir())
    begun = [folder for folder in folders if folder.name.count(".") == 1]
    copies = [folder for folder in folders if folder.name.count(".") == 2]
    # Both go on with the better one's weights, on the cores that their killed predecessors held.
    assert (len({z_dim(folder) for folder in begun}), len({z_dim(folder) for folder in copies})) == (2, 1)
    assert [len(read_json(folder / "judged.json")["reports"]) for folder in copies] == [1, 1]
    assert result.trials == 2
    # The settings file has the rates in force until the weights were copied, and those after it.
    lineage = read_json(best_checkpoint(new_storage) / "generator.json")["about"]["rates"]
    with open(result.settings_file) as file:
        text = file.read()
    kept = yaml.safe_load(text)
    assert f"--begin-from {best_checkpoint(new_storage)}\n" in text
    assert [kept["generator_lr"], kept["critic_lr"]] == lineage[0][1:]
    assert [each.split(":")[0] for each in kept["rate_changes"]] == [f"{each[0] / 1000:g}" for each in lineage[1:]]
    assert read_json(new_storage / "runs" / "search-best" / "run.json")["state"] == "finished"
    best = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert best["model"]["version"] == 1
    # Stopped during that last training: the same command trains to its end. Once it has ended, nothing is left.
    record = new_storage / "runs" / "search-best" / "run.json"
    record.write_text(json.dumps({**read_json(record), "state": "running"}))
    assert tune(settings).best == result.best
    wait_for_cores()
    assert read_json(record)["state"] == "finished"
    with pytest.raises(ConfigurationError, match="search is finished"):
        tune(settings)


def best_checkpoint(storage):
    """The checkpoint of the lowest KID of all trials."""
    reports = [each for path in storage.glob("runs/*/judged.json") for each in read_json(path)["reports"]]
    return Path(min(reports, key=lambda each: each["kid"])["checkpoint"])


def read_json(path):
    return json.loads(path.read_text())


def z_dim(folder):
    return read_json(folder / "run.json")["settings"]["z_dim"]


def check_settings_file(result, settings):
    with open(result.settings_file) as file:
        best = yaml.safe_load(file)
    assert {name: best[name] for name in result.best} == result.best
    loaded, _ = parse(TrainSettings, ["--config", result.settings_file, "--data", settings.data], doc=None)
    assert loaded.generator_lr == result.best["generator_lr"]
    assert loaded.epochs == settings.epochs  # the full length, not a trial's


def check_pictures(result):
    pictures = set(os.listdir(result.pictures))
    assert pictures == {"settings.png", "curves.png", "parallel.png", "samples.png"}
    for name in pictures:
        with Image.open(os.path.join(result.pictures, name)) as picture:
            assert picture.width > 200


def stop_in_the_second_trial(settings, client, stop):
    """Start the search, and stop it by a signal when one of its trials has finished and the other one has begun."""
    job = start_job("tune", settings=settings, address=address(), stderr=subprocess.PIPE)
    wait_until(lambda: finished_runs(settings), "a finished trial", alive=job)
    wait_until(lambda: len(trials(client)) == 2, "another trial", alive=job)
    job.send_signal(stop)
    _, printed = outputs(job)
    if stop == signal.SIGINT:
        assert job.returncode == 130
        assert printed.splitlines()[-1] == "interrupted; the same command resumes it"


def finished_runs(settings):
    """Their records in storage, since MLflow, asked ten times a second, would take a good part of a core."""
    records = Path(settings.storage, "runs").glob("*/run.json")
    return [record for record in records if read_json(record).get("state") == "finished"]


def address():
    return ray.get_runtime_context().gcs_address


def all_runs(client):
    return client.search_runs([client.get_experiment_by_name("raygan").experiment_id])


def trials(client, condition=""):
    experiment = client.get_experiment_by_name("raygan")
    runs = client.search_runs([experiment.experiment_id], condition) if experiment else []
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]
