"""Jobs on a cluster: stopped from outside, and spread over nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from raygan import cluster, tracking
from raygan.config import StorageSettings
from raygan.errors import ConfigurationError

JOB = """
import time
from raygan import cluster, tracking
from raygan.cli import run_job
from raygan.config import StorageSettings

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
    assert said == "interrupted; the same command goes on where this one stopped\n"
    client = tracking.connect(StorageSettings(storage=str(new_storage), tracking_uri=None))
    (run,) = client.search_runs([client.get_experiment_by_name("raygan").experiment_id])
    assert run.info.status == "KILLED"


@pytest.fixture
def second_node(ray_cluster, tmp_path):
    """A second node without CPUs, on whose side of the machine the folder `apart` is another, empty one."""
    apart = tmp_path / "apart"
    apart.mkdir()
    start = f"mount -t tmpfs none {apart} && exec ray start --block --num-cpus=0 --address={gcs_address()}"
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("takes mount namespaces")
    before = len(cluster.nodes())
    # `ray start` writes the cluster's address where later jobs of this machine look for one.
    known = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    kept = known.read_bytes() if known.exists() else None
    node = subprocess.Popen([unshare, "--mount", "sh", "-c", start], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(cluster.nodes()) == before:
        assert node.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield apart
    node.terminate()
    node.wait()
    if kept is not None:
        known.write_bytes(kept)
    else:
        known.unlink(missing_ok=True)
    while len(cluster.nodes()) > before:
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)


def gcs_address() -> str:
    return ray.get_runtime_context().gcs_address


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
