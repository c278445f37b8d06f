"""Submitted jobs, on a real cluster and without one."""

import asyncio
import os
import subprocess
import sys
import zipfile

import aiohttp
import pytest
import ray
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raygan.errors import RayganError
from raygan.runtime.settings import SubmitSettings
from raygan.runtime.submit import submit
from tests.helpers import REPOSITORY


def settings(**changes):
    return SubmitSettings.model_validate({"working_dir": str(REPOSITORY), "address": "http://127.0.0.1:1", **changes})


def run(*arguments):
    command = [sys.executable, "jobs/submit.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ))


def answer_as(monkeypatch, version):
    """Make every address answer like a cluster of this version."""

    def check(client, *args, **kwargs):
        client._server_ray_version = version

    monkeypatch.setattr(JobSubmissionClient, "_check_connection_and_version", check)


@pytest.fixture
def dashboard(ray_cluster):
    return f"http://{ray.init(ignore_reinit_error=True).dashboard_url}"


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
        ({}, ["trian.py"], "'trian.py' is not a job"),
        ({"working_dir": "/"}, ["train.py"], "--working-dir: / is not a checkout"),
        ({"address": "HEAD:8265"}, ["train.py"], "--address: 'HEAD:8265' is not the address"),
        ({}, ["train.py"], "--address: no cluster answers at http://127.0.0.1:1"),
        ({"address": "http://[::1"}, ["train.py"], r"--address: no cluster answers at http://\[::1 \(Failed to parse"),
        (
            {},
            ["train.py", "--tracking-uri", "postgresql://me:s3cret@db/mlflow"],
            "--tracking-uri: must not contain a p",
        ),
        ({}, ["train.py", "--tracking-uri=https://me:s3cret@mlflow"], "--tracking-uri: must not contain a password"),
        ({}, ["train.py", "--data", "s3://b/x?secret_key=s3cret"], "--data: must not contain a password"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(changes, command, says):
    with pytest.raises(RayganError, match=says) as raised:
        submit(settings(**changes), command)
    assert "\n" not in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_dead_proxy_of_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:s3cret@127.0.0.1:2")
    with pytest.raises(RayganError, match=r"proxy http://127.0.0.1:2 .*add head to no_proxy, or unset http_proxy$"):
        submit(settings(address="http://head:8265"), ["train.py"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(RayganError, match="give the address of the cluster's dashboard"):
        submit(settings(), ["train.py"])


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("Request failed with status code 500: Package size (600MiB) exceeds the maximum size of 500MiB", "rayignore"),
        ("Request failed with status code 500: Job with submission_id x already exists", "give another name"),
        ("Request failed with status code 500: no room\nTraceback", "refuses the job: Request failed .* no room$"),
    ],
)
def test_what_the_cluster_refuses_is_reported_in_one_line(monkeypatch, said, says):
    def refuse(*args, **kwargs):
        raise RuntimeError(said)

    answer_as(monkeypatch, ray.__version__)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", refuse)
    with pytest.raises(RayganError, match=says):
        submit(settings(name="x"), ["train.py"])


def test_a_cluster_with_another_version_is_refused(monkeypatch):
    answer_as(monkeypatch, "2.0.0")
    with pytest.raises(RayganError, match=rf"runs Ray 2.0.0 but here is {ray.__version__}: install"):
        submit(settings(), ["train.py"])


@pytest.fixture
def submitted(monkeypatch):
    """A cluster that accepts every job; a test sets how the job is followed and how it ends."""
    answer_as(monkeypatch, ray.__version__)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", lambda *args, **kwargs: "x")

    async def silent(client, name):
        for line in ():
            yield line

    def become(info, tail=silent):
        monkeypatch.setattr(JobSubmissionClient, "tail_job_logs", tail)
        monkeypatch.setattr(JobSubmissionClient, "get_job_info", info)

    return become


PIP = """runtime_env setup failed: Failed to set up runtime environment.
Traceback (most recent call last):
Last 50 lines of stdout:
    ERROR: No matching distribution found for torch>=99
    [notice] A new release of pip is available"""


@pytest.mark.parametrize(
    ("status", "message", "exit_code", "says"),
    [
        (JobStatus.FAILED, PIP, None, "job x: failed: ERROR: No matching distribution found for torch>=99\n"),
        (JobStatus.FAILED, "Job supervisor actor died:\nit is gone\n", None, "job x: failed: it is gone\n"),
        (JobStatus.FAILED, "entrypoint failed, last logs:\nerror: no such label\n", 2, "job x: failed\n"),
        (JobStatus.STOPPED, "Job was intentionally stopped.", None, "job x: stopped: Job was intentionally stopped.\n"),
        (JobStatus.FAILED, None, None, "job x: failed\n"),
    ],
)
def test_a_job_that_did_not_run_has_its_reason_reported(submitted, capsys, status, message, exit_code, says):
    info = JobDetails(
        type="SUBMISSION", entrypoint="python", status=status, message=message, driver_exit_code=exit_code
    )
    submitted(lambda client, name: info)
    assert submit(settings(), ["train.py"]) == (exit_code or 1)
    assert capsys.readouterr().err == says


def test_a_job_that_has_not_started_says_why_once(submitted, capsys, monkeypatch):
    monkeypatch.setattr("raygan.runtime.submit._PENDING_S", 0.01)
    states = [JobStatus.PENDING, JobStatus.SUCCEEDED]

    def info(client, name):
        message = "Job has not started yet. It may be waiting for the runtime environment to be set up."
        return JobDetails(type="SUBMISSION", entrypoint="x", status=states.pop(0), message=message)

    async def tail(client, name):
        await asyncio.sleep(0.5)
        yield "working\n"

    submitted(info, tail)
    assert submit(settings(), ["train.py"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["working"]
    assert err == (
        "job x: Job has not started yet. It may be waiting for the runtime environment to be set up. Installing the "
        "checkout on a node takes minutes the first time; Ctrl-C leaves the job running\n"
    )


@pytest.mark.parametrize("error", [aiohttp.ClientConnectionError("gone"), RuntimeError("gone"), OSError("gone")])
@pytest.mark.parametrize("while_followed", [True, False])
def test_losing_the_cluster_is_reported_in_one_line(submitted, error, while_followed):
    async def tail(client, name):
        if while_followed:
            raise error
        for line in ():
            yield line

    def fail(*args):
        raise error

    submitted(fail, tail)
    with pytest.raises(RayganError, match="lost contact with job x, which may still run: gone"):
        submit(settings(), ["train.py"])


def test_a_log_that_ends_before_its_job_is_reported_in_one_line(submitted):
    async def tail(client, name):
        for line in ():
            yield line

    submitted(lambda *args: JobDetails(type="SUBMISSION", status=JobStatus.RUNNING, entrypoint="x"), tail)
    with pytest.raises(RayganError, match=r"lost contact with job x, .*: its log ended while it was running"):
        submit(settings(), ["train.py"])


def test_only_code_and_settings_are_sent(tmp_path):
    folder = tmp_path / "checkout"
    travels = ["raygan/a.py", "raygan/presets/b.yaml", "jobs/train.py", "jobs/kuberay/c.yaml", "pyproject.toml"]
    travels += ["README.md", "LICENSE", "serve_config.yaml", "mine.yaml"]
    stays = ["photos/a.JPG", "photos/b.webp", "c.tiff", "d.avif", "e.gif", "model.pt", "data.tar", "runs/mlflow.db"]
    stays += [".git/config", "tests/test_a.py", "raygan/__pycache__/a.pyc", "raygan.egg-info/x", "private/d.yaml"]
    for name in [*travels, *stays]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / ".rayignore").write_bytes((REPOSITORY / ".rayignore").read_bytes())
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True)
    assert sorted(zipfile.ZipFile(package).namelist()) == sorted(travels)
