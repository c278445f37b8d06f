"""Jobs on a cluster: stopped from outside, and spread over nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygan import tracking
from raygan.data.settings import PrepareSettings
from raygan.errors import ConfigurationError
from raygan.runtime import cluster
from raygan.runtime.settings import StorageSettings
from tests.training.test_train import REALS, assert_a_single_process_does_the_same, one_iteration

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
        time.sleep(60)

run_job(StorageSettings, main, doc="A job that works until it is stopped.")
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_says_so_and_closes_its_run(ray_cluster, new_storage, sent, status):
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, "--storage", str(new_storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": gcs_address()},
    )
    assert job.stdout.readline() == "working\n"
    job.send_signal(sent)
    _, said = job.communicate(timeout=30)
    assert job.returncode == status
    assert said == "interrupted\n"
    client = tracking.connect(StorageSettings(storage=str(new_storage), tracking_uri=None))
    (run,) = client.search_runs([client.get_experiment_by_name("raygan").experiment_id])
    assert run.info.status == "KILLED"


CONNECT = """
import psutil
from raygan.cli import run_job
from raygan.runtime.settings import StorageSettings

def main(settings):
    from raygan.runtime import cluster
    cluster.connect()
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                host = connection.laddr.ip.removeprefix("::ffff:")
                if host not in ("127.0.0.1", "::1"):
                    print(process.name(), "listens on", host)
    print("connected")

run_job(StorageSettings, main, doc="A job that connects.")
"""


def test_a_wrong_address_is_said_at_once():
    job = run_apart({"RAY_ADDRESS": "127.0.0.1:9"})
    assert job.returncode == 1
    assert job.stderr == (
        "error: the Ray cluster 127.0.0.1:9 does not answer (nothing listens there): "
        "check RAY_ADDRESS, or unset it to run locally\n"
    )


def test_a_refused_token_is_said(ray_cluster):
    job = run_apart({"RAY_ADDRESS": gcs_address(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-another-cluster"})
    assert job.returncode == 1
    assert job.stderr.splitlines()[-1] == (
        f"error: the Ray cluster {gcs_address()} refuses the token, or there is none: set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN to the cluster's, or RAY_AUTH_TOKEN_PATH to a file that holds it"
    )


def test_a_missing_token_is_said_likewise():
    """Ray raises this where RAY_AUTH_MODE asks for a token and there is none."""
    said = ray.exceptions.AuthenticationError("Token authentication is enabled but no token was found")
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in str(cluster._refusal("head:6379", said))


def test_another_version_is_said():
    """As Ray words it."""
    said = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.8.1")
    assert str(cluster._refusal("head:6379", said)) == (
        "the Ray cluster head:6379 has another version (Version mismatch: The cluster was started with: "
        "Ray: 2.9.0 Python: 3.8.1): install the cluster's here"
    )


def test_a_cluster_that_is_gone_is_not_waited_for_and_ones_own_listens_on_loopback():
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # short: Ray's sockets are below it
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        job = run_apart({"RAY_TMPDIR": folder}, without="RAY_ADDRESS")
    assert (job.returncode, job.stdout) == (0, "connected\n"), job.stderr
    assert job.stderr == "the Ray cluster at 127.0.0.1:9 is gone; running on this machine alone\n"


def run_apart(changes, without=None):
    environment = {key: value for key, value in {**os.environ, **changes}.items() if key != without}
    command = [sys.executable, "-c", CONNECT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture
def second_node(ray_cluster, tmp_path):
    """A second node without CPUs, on whose side of the machine the folder `apart` is another, empty one."""
    apart = tmp_path / "apart"
    apart.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("takes mount namespaces")
    with another_node(0, [unshare, "--mount", "sh", "-c", f'mount -t tmpfs none {apart} && exec "$@"', "sh"]):
        yield apart


@contextmanager
def another_node(cpus, within=()):
    """A node of the tests' cluster for the length of a `with` block; `within` is a command that runs commands."""
    before = len(cluster.nodes())
    # `ray start` writes the cluster's address where later jobs of this machine look for one.
    known = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    kept = known.read_bytes() if known.exists() else None
    start = ["ray", "start", "--block", f"--num-cpus={cpus}", f"--address={gcs_address()}"]
    node = subprocess.Popen([*within, *start], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(cluster.nodes()) == before:
        assert node.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    try:
        yield
    finally:
        node.terminate()
        node.wait()
        if kept is not None:
            known.write_bytes(kept)
        else:
            known.unlink(missing_ok=True)
        while len(cluster.nodes()) > before:
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)


def one_iteration_somewhere(config):
    context = ray.train.get_context()
    Path(config["out"], f"node-{context.get_world_rank()}").write_text(ray.get_runtime_context().get_node_id())
    one_iteration(config)


def test_four_workers_on_two_nodes_do_what_a_single_process_does(ray_cluster, tmp_path):
    with another_node(2):
        TorchTrainer(
            one_iteration_somewhere,
            train_loop_config={"reals": REALS, "out": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=4, placement_strategy="SPREAD"),
            run_config=RunConfig(storage_path=str(tmp_path), name="iteration"),
        ).fit()
    assert len({path.read_text() for path in tmp_path.glob("node-*")}) == 2
    assert_a_single_process_does_the_same(tmp_path)


def gcs_address() -> str:
    return ray.get_runtime_context().gcs_address


def test_a_file_of_records_is_for_one_machine(second_node, new_storage, write_shards, train_settings, monkeypatch):
    settings = train_settings(storage=str(new_storage), data=str(write_shards()), tracking_uri=None)
    monkeypatch.setattr(cluster, "_machine", lambda: "another")  # the job's; workers import the module themselves
    with pytest.raises(ConfigurationError, match="--tracking-uri: the cluster has several machines, and a SQLite"):
        cluster._check_shared(settings)
    cluster._check_shared(settings.model_copy(update={"tracking_uri": "http://mlflow:5000"}))


def test_every_node_must_see_the_jobs_folders(second_node, new_storage, write_shards, train_settings):
    good = {"storage": str(new_storage), "data": str(write_shards()), "tracking_uri": None}
    cluster._check_shared(train_settings(**good))
    (second_node / "photos").mkdir()
    database = second_node / "mlflow.db"
    database.touch()
    for wrong, says in (
        ({"storage": str(second_node)}, f"--storage: {second_node} of this node is not seen by node"),
        ({"data": str(second_node / "photos")}, "--data"),
        ({"tracking_uri": f"sqlite:///{database}"}, "--tracking-uri: .* give the address of an MLflow server"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            cluster._check_shared(train_settings(**{**good, **wrong}))
    photos = {"storage": str(new_storage), "tracking_uri": None, "input": [str(new_storage)]}
    new = {**photos, "output": str(second_node / "shards")}
    with pytest.raises(ConfigurationError, match=f"--output: {new['output']} of this node is not seen by node"):
        cluster._check_shared(PrepareSettings(**new))
    assert os.listdir(new["output"]) == []
    os.rmdir(new["output"])
    cluster._check_shared(PrepareSettings(**new, dry_run=True))
    assert not os.path.exists(new["output"])
    with pytest.raises(ConfigurationError, match="--storage"):
        cluster._check_shared(PrepareSettings(**{**photos, "storage": f"file://{second_node}", "output": "s3://b/x"}))
