"""Killed trainings give their cores back, whatever Ray's own cleaner does."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
import ray
import ray.train

# Ray Train's trainer without torch, which workers take seconds to import.
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raygan.runtime import reservations, waiting
from tests.helpers import CORES, outputs, taken_cores, wait_for_cores, wait_until
from tests.runtime.nodes import gcs_address

pytestmark = pytest.mark.usefixtures("ray_cluster")

#: A dashboard that doesn't exist, so Ray Train's cleaner, which asks it, gives up.
NOBODY = {"env_vars": {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}}


def train(folder):
    """Train until killed."""

    def work(config):
        open(os.path.join(config["folder"], "started"), "w").close()
        time.sleep(600)

    scaling = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": CORES / 2})
    run = ray.train.RunConfig(storage_path=folder, name="run")
    DataParallelTrainer(work, train_loop_config={"folder": folder}, scaling_config=scaling, run_config=run).fit()


@ray.remote(num_cpus=0, runtime_env=NOBODY)
class Trial:
    """A process that trains, as a trial of a search does."""

    def train(self, folder):
        train(folder)


def start_trial(folder):
    trial = Trial.remote()
    trial.train.remote(str(folder))
    wait_for_start(folder)
    return trial


def wait_for_start(folder):
    wait_until((folder / "started").exists, "the training starts")
    wait_for_cores(0)


def test_a_killed_trial_gives_its_cores_back_while_the_search_goes_on(tmp_path):
    with reservations.returned_cores():
        ray.kill(start_trial(tmp_path))
        wait_for_cores()


def test_a_search_that_ends_right_after_killing_a_trial_leaves_no_reservation(tmp_path):
    with reservations.returned_cores():
        ray.kill(start_trial(tmp_path))
    wait_for_cores()


def test_an_interrupted_training_ends_while_its_process_keeps_running(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start_and_interrupt(tmp_path)
    wait_for_cores()


def start_and_interrupt(folder):
    with reservations.returned_cores():
        threading.Thread(target=quietly, args=(train, str(folder)), daemon=True).start()
        wait_for_start(folder)
        raise KeyboardInterrupt


def quietly(call, *arguments):
    with contextlib.suppress(ray.exceptions.RayError):
        call(*arguments)


def test_a_training_that_waits_for_cores_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "LATE_S", 1.0)
    said = []
    with taken_cores(1), pytest.raises(KeyboardInterrupt):
        wait_and_interrupt(tmp_path, said, capsys)
    assert "".join(said) == (
        f"waiting for {CORES:g} CPU, which the cluster doesn't have free (see `ray status`): the training starts once "
        "other jobs end or nodes are added\n"
    )
    wait_for_cores()


WAIT = """
import ray
from raygan.runtime import cluster, waiting

waiting.LATE_S = 0.5
cluster.connect()
print(ray.get(ray.remote(num_cpus=0.5)(lambda: "done").remote()))
"""


def test_a_job_whose_tasks_wait_for_cores_says_so_once():
    with taken_cores(CORES):
        job = subprocess.Popen(
            [sys.executable, "-c", WAIT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": gcs_address()},
        )
        said = next(line for line in job.stderr if "waiting" in line)
        time.sleep(2)
    assert outputs(job) == ("done\n", "")
    assert said == (
        "waiting for 0.5 CPU, which the cluster doesn't have free (see `ray status`): the work starts once other jobs "
        "end or nodes are added\n"
    )


def wait_and_interrupt(folder, said, capsys):
    with reservations.returned_cores():
        threading.Thread(target=quietly, args=(train, str(folder)), daemon=True).start()
        wait_until(lambda: said.append(capsys.readouterr().err) or "waiting" in "".join(said), "it says so")
        time.sleep(3)
        said.append(capsys.readouterr().err)
        raise KeyboardInterrupt


def test_other_placement_groups_stay():
    group = ray.util.placement_group([{"CPU": 1}])

    @ray.remote(num_cpus=0)
    class Owner:
        def reserve(self):
            self.group = ray.util.placement_group([{"CPU": 1}])
            return self.group

    owner = Owner.remote()
    theirs = ray.get(owner.reserve.remote())
    with reservations.returned_cores():
        pass
    states = {ray.util.placement_group_table(each)["state"] for each in (group, theirs)}
    ray.util.remove_placement_group(group)
    ray.util.remove_placement_group(theirs)
    assert states == {"CREATED"}
    wait_for_cores()
