"""Connecting to a cluster, and being stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from raygan import tracking
from raygan.errors import RayganError
from raygan.runtime import cluster
from raygan.runtime.settings import StorageSettings
from tests.helpers import outputs
from tests.runtime.nodes import gcs_address

JOB = """
import time
from raygan import tracking
from raygan.runtime import cluster
from raygan.cli import run_job
from raygan.runtime.settings import StorageSettings

def main(settings):
    cluster.connect()
    with tracking.start_run(settings, "stopped", job="test", params={}):
        print("working", flush=True)
        time.sleep(600)

run_job(StorageSettings, main, doc="A job that works until it is stopped.")
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_closes_its_run_and_says_so(ray_cluster, new_storage, sent, status):
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, "--storage", str(new_storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": gcs_address()},
    )
    assert job.stdout.readline() == "working\n"
    job.send_signal(sent)
    _, said = outputs(job)
    assert job.returncode == status
    assert said == "interrupted\n"
    client = tracking.connect(StorageSettings(storage=str(new_storage), tracking_uri=None))
    (run,) = client.search_runs([client.get_experiment_by_name("raygan").experiment_id])
    assert run.info.status == "KILLED"


CONNECT = """
import os
import signal
import time
import psutil
from raygan.cli import run_job
from raygan.runtime.settings import StorageSettings

def main(settings):
    from raygan.runtime import cluster
    cluster.connect()
    here = psutil.Process()
    started = here.children(recursive=True)
    for process in (here, *started):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                host = connection.laddr.ip.removeprefix("::ffff:")
                if host not in ("127.0.0.1", "::1"):
                    print(process.name(), "listens on", host)
    import ray
    nicer = ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0)
    print("connected, workers are nicer by", nicer)
    needed = [p for p in started if {"raylet", "gcs_server"} & {p.name(), p.parent().name()}]
    assert len(needed) > 3
    try:
        os.killpg(0, signal.SIGTERM)
        time.sleep(60)
    finally:
        ended, _ = psutil.wait_procs(needed, timeout=2)
        print(len(ended), "of its processes have ended")

run_job(StorageSettings, main, doc="A job that connects.")
"""


@pytest.mark.parametrize("given", ["127.0.0.1:9", "127.0.0.1:9 ", "auto"])
def test_a_wrong_address_is_reported_at_once(monkeypatch, given, tmp_path):
    Path(tmp_path, "ray").mkdir()
    Path(tmp_path, "ray", "ray_current_cluster").write_text("127.0.0.1:9")  # of one that is gone
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RayganError) as raised:
        cluster.connect()
    assert str(raised.value) == (
        "the Ray cluster 127.0.0.1:9 does not answer (nothing listens there): "
        "check RAY_ADDRESS, or unset it to run locally"
    )


def test_a_refused_token_is_reported(ray_cluster):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-another-cluster"}
    # Ray tries again for these seconds, by default for 20.
    job = run_apart({"RAY_ADDRESS": gcs_address(), "RAY_gcs_server_port_wait_time_s": "5", **token})
    assert job.returncode == 1
    assert job.stderr.splitlines()[-1] == (
        f"error: the Ray cluster {gcs_address()} refuses the token, or no token is set: set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN to the cluster's token or RAY_AUTH_TOKEN_PATH to a file with it"
    )


@pytest.fixture
def refused(monkeypatch):
    """A function that connects to a cluster where `ray.init` raises an error, and returns the message."""

    def connect(error):
        def fail(**_):
            raise error

        with socket.create_server(("127.0.0.1", 0)) as head:
            address = f"127.0.0.1:{head.getsockname()[1]}"
            monkeypatch.setenv("RAY_ADDRESS", address)
            monkeypatch.setattr(ray, "is_initialized", lambda: False)
            monkeypatch.setattr(ray, "init", fail)
            with pytest.raises(RayganError) as raised:
                cluster.connect()
        return str(raised.value).replace(address, "HEAD")

    return connect


def test_a_missing_token_is_reported_in_the_same_way(refused):
    """Ray raises this where RAY_AUTH_MODE asks for a token and there is none."""
    error = ray.exceptions.AuthenticationError("Token authentication is enabled but no token was found")
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in refused(error)


def test_another_version_is_reported(refused):
    """The error is worded as Ray words it."""
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.8.1")
    assert refused(error) == (
        "the Ray cluster HEAD runs another version (Version mismatch: The cluster was started with: "
        "Ray: 2.9.0 Python: 3.8.1): install the cluster's version here"
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "\nThe last 20 lines of /tmp/ray/s/logs/dashboard.log (it contains the error message): \nINFO a\nINFO b",
            "its dashboard did not: run the command again if the machine was busy; otherwise see "
            "/tmp/ray/s/logs/dashboard.log",
        ),
        ("The current node timed out during startup. GCS may be overloaded.\n", None),
    ],
)
def test_a_machine_too_busy_to_start_ray_is_reported(said, why, monkeypatch):
    """Ray raises bare exceptions, worded like this."""

    def fail(**_):
        raise Exception(said)

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RayganError) as raised:
        cluster.connect()
    assert str(raised.value) == f"Ray can't start on this machine: {why or said.strip()}"


@pytest.mark.cluster
def test_a_cluster_that_is_gone_is_replaced_by_one_on_loopback_whose_workers_dont_starve_and_that_outlives_sigterm():
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # short: Ray's sockets are below it
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        job = run_apart({"RAY_TMPDIR": folder}, "RAY_ADDRESS", "RAY_worker_niceness")
    assert job.returncode == 143, job.stderr
    assert job.stdout == "connected, workers are nicer by 0\n0 of its processes have ended\n"
    assert job.stderr == "the Ray cluster at 127.0.0.1:9 is gone; running on this machine alone\ninterrupted\n"


def run_apart(changes, *without):
    environment = {key: value for key, value in {**os.environ, **changes}.items() if key not in without}
    command = [sys.executable, "-c", CONNECT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, start_new_session=True)
