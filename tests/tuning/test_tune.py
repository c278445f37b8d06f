"""A whole search: trials are real trainings, and what is found can be trained on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import ray
import yaml
from PIL import Image

from raygan import tracking
from raygan.cli import parse
from raygan.errors import ConfigurationError
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings
from raygan.tuning.tune import tune
from tests.helpers import REPOSITORY, wait_for_cores

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def search_settings(train_settings, write_shards):
    def make(**changes):
        data = str(write_shards(per_label=40, folder=f"search-{len(changes)}"))
        values = train_settings(data=data, num_workers=1, quality_every=None, quality_samples=16).model_dump()
        values |= {
            "name": "search",
            "trials": 2,
            "concurrent": 1,
            "trial_kimg": 0.08,
            "judgements": 2,
            "cpus_per_worker": 8.0,  # all there are: the worker judges itself
            "space": SPACE,
            **changes,
        }
        return TuneSettings.model_validate(values)

    return make


SPACE = ["generator_lr=1e-4..1e-3", "z_dim=4,8"]


def test_a_search_killed_on_its_way_goes_on_finds_and_writes_what_train_takes(search_settings, capsys):
    settings = search_settings()
    client = tracking.connect(settings)
    kill_after_a_trial(settings, client)
    (done,) = trials(client, "attributes.status = 'FINISHED'")
    result = tune(settings)
    children = trials(client)
    assert len(children) == 2
    # The second one is stopped where it is worse than the first was.
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {result.run_id}
    assert done.info in [run.info for run in children]  # not trained again
    points = [(run.data.params["generator_lr"], run.data.params["z_dim"]) for run in children]
    # The source's values come first, though its z_dim is outside this space.
    assert ("0.00035", "200") in points
    earlier, later = sorted(children, key=lambda run: run.info.start_time)
    assert earlier.info.end_time <= later.info.start_time  # one at a time, as asked for
    kids = {
        run.info.run_id: [m.value for m in client.get_metric_history(run.info.run_id, "kid16_efficientnet_lite0")]
        for run in children
    }
    assert result.kid == pytest.approx(min(value for values in kids.values() for value in values))
    with open(result.settings_file) as file:
        best = yaml.safe_load(file)
    assert {name: best[name] for name in result.best} == result.best
    loaded, _ = parse(TrainSettings, ["--config", result.settings_file, "--data", settings.data], doc=None)
    assert loaded.generator_lr == result.best["generator_lr"]
    assert loaded.epochs == settings.epochs  # the full length, not a trial's
    pictures = set(os.listdir(result.pictures))
    assert pictures == {"settings.png", "curves.png", "parallel.png", "samples.png"}
    for name in pictures:
        with Image.open(os.path.join(result.pictures, name)) as picture:
            assert picture.width > 200
    assert "(source)" in capsys.readouterr().out
    assert not tracking.serving_generators(client)  # trials promote nothing
    assert set(json.loads(result.to_json())) == {"run_id", "best", "kid", "trials", "settings_file", "pictures"}
    with pytest.raises(ConfigurationError, match="is finished"):
        tune(settings)
    wait_for_cores(8)  # a stopped trial's are given back, too


def kill_after_a_trial(settings, client):
    """Start the search, and kill it when one of its trials has ended."""
    driver = start(settings)
    deadline = time.monotonic() + 180
    while not trials(client, "attributes.status = 'FINISHED'"):
        assert driver.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.kill()
    driver.wait()


def test_a_search_that_is_stopped_closes_its_runs_and_goes_on(search_settings):
    settings = search_settings(trials=1, trial_kimg=0.12, judgements=3, scheduler="none")
    client = tracking.connect(settings)
    job = start(settings, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while not any("kid16_efficientnet_lite0" in run.data.metrics for run in trials(client)):
        assert job.poll() is None, "the search ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert said.splitlines()[-1] == b"interrupted; the same command resumes it"
    stopped = all_runs(client)
    assert len(stopped) > 1
    assert {run.info.status for run in stopped} == {"KILLED"}
    result = tune(settings)
    ended = all_runs(client)
    assert {run.info.run_id for run in stopped} == {run.info.run_id for run in ended}
    assert {run.info.status for run in ended} == {"FINISHED"}
    assert client.get_run(result.run_id).info.status == "FINISHED"


def start(settings, stderr=subprocess.DEVNULL):
    """Start the search as a job of its own."""
    config = os.path.join(settings.storage, "search.json")
    with open(config, "w") as file:
        json.dump(settings.plain(), file)  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs/tune.py"), "--config", config],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )


def all_runs(client):
    return client.search_runs([client.get_experiment_by_name("raygan").experiment_id])


def trials(client, condition=""):
    experiment = client.get_experiment_by_name("raygan")
    runs = client.search_runs([experiment.experiment_id], condition) if experiment else []
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def test_more_workers_than_the_cluster_can_give(search_settings):
    with pytest.raises(ConfigurationError, match="do not fit"):
        tune(search_settings(num_workers=4, cpus_per_worker=3.0))
