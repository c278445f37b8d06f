"""Submitted jobs: on a real cluster, and what is said where there is none."""

import os
import subprocess
import sys

import pytest
import ray
from ray.job_submission import JobSubmissionClient

from raygan.config import SubmitSettings
from raygan.errors import RayganError
from raygan.submit import submit
from tests.conftest import REPOSITORY


def settings(**changes):
    return SubmitSettings.model_validate({"working_dir": str(REPOSITORY), "address": "http://127.0.0.1:1", **changes})


def run(*arguments):
    command = [sys.executable, "jobs/submit.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ))


def answer_as(monkeypatch, version):
    """Let every address answer as a cluster of this version."""

    def check(client, *args, **kwargs):
        client._server_ray_version = version

    monkeypatch.setattr(JobSubmissionClient, "_check_connection_and_version", check)


@pytest.fixture
def dashboard(ray_cluster):
    return f"http://{ray._private.worker.global_worker.node.address_info['webui_url']}"


def test_a_job_is_followed_to_its_exit_status(dashboard):
    well = run("--address", dashboard, "--no-install", "--", "train.py", "--data", "x", "--dry-run", "--name", "a b")
    assert well.returncode == 0, well.stderr
    assert "name: a b" in well.stdout
    wrong = run("--address", dashboard, "--no-install", "--", "train.py", "--epoch", "3")
    assert wrong.returncode == 2
    assert "did you mean --epochs" in wrong.stdout
    assert "failed" in wrong.stderr


@pytest.mark.parametrize(
    ("changes", "command", "says"),
    [
        ({}, [], "name a job after --; choose one of benchmark.py, classify.py"),
        ({}, ["trian.py"], "'trian.py' is no job"),
        ({"working_dir": "/"}, ["train.py"], "--working-dir: / is no checkout"),
        ({"address": "HEAD:8265"}, ["train.py"], "--address: 'HEAD:8265' is not the address"),
        ({}, ["train.py"], "--address: no cluster answers at http://127.0.0.1:1"),
    ],
)
def test_what_cannot_be_submitted_is_said_in_one_line(changes, command, says):
    with pytest.raises(RayganError, match=says) as raised:
        submit(settings(**changes), command)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("Request failed with status code 500: Package size (600MiB) exceeds the maximum size of 500MiB", "rayignore"),
        ("Request failed with status code 500: Job with submission_id x already exists", "give another"),
        ("Request failed with status code 500: no room\nTraceback", "refuses the job: Request failed .* no room$"),
    ],
)
def test_what_the_cluster_refuses_is_said_in_one_line(monkeypatch, said, says):
    def refuse(*args, **kwargs):
        raise RuntimeError(said)

    answer_as(monkeypatch, ray.__version__)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", refuse)
    with pytest.raises(RayganError, match=says):
        submit(settings(name="x"), ["train.py"])


def test_another_version_is_said(monkeypatch):
    answer_as(monkeypatch, "2.0.0")
    with pytest.raises(RayganError, match=rf"has Ray 2.0.0, and here is {ray.__version__}"):
        submit(settings(), ["train.py"])
