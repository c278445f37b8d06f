"""MLflow runs: resumed, closed with the right status, and never used by two processes."""

import io
import math
import shutil
import socket
import subprocess
import sys

import psutil
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from raygan import tracking
from raygan.errors import RayganError
from raygan.tracking import orphans
from raygan.tracking.heartbeat import Owner
from raygan.tracking.runs import flatten
from raygan.tracking.spool import Spool
from tests.helpers import wait_until
from tests.tracking.records import steps


def test_repeated_steps_are_logged_once_after_a_restart(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        run.log_metrics({"loss": 1.0}, 10)
        run.log_metrics({"loss": 2.0}, 20)
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id
        for step in (10, 20, 30):
            again.log_metrics({"loss": 9.0, "kid": 0.1}, step)
        again.log_metrics({"late": 0.5}, 10)  # a metric logged at other steps
    history = run.client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 1.0), (20, 2.0), (30, 9.0)]
    assert steps(run.client, run.id, "kid") == [10, 20, 30]
    assert steps(run.client, run.id, "late") == [10]


def test_values_that_are_not_finite_are_named_in_a_tag(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        run.log_metrics({"loss": math.nan, "other": 3.0, "norm": math.inf}, 7)
    record = run.client.get_run(run.id).data
    assert record.metrics == {"other": 3.0}
    assert record.tags["not_finite"] == "loss, norm at step 7"


def test_the_next_job_closes_a_killed_run_and_sends_its_records(settings):
    """The child is killed with unsent records on disk."""
    child = f"""
import os
from raygan import tracking
from raygan.runtime.settings import StorageSettings
from raygan.tracking import runs
runs.Sender = lambda client, spool: None
settings = StorageSettings(storage={settings.storage!r}, tracking_uri=None)
with tracking.start_run(settings, "killed", job="test", params={{}}) as run:
    run.log_metrics({{"loss": 4.0}}, 1)
    print(run.id, flush=True)
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False).stdout.strip()
    client = tracking.connect(settings)
    assert client.get_run(killed).info.status == "RUNNING"
    with tracking.start_run(settings, "next", job="test", params={}) as run:
        assert client.get_run(killed).info.status == "KILLED"
        assert steps(client, killed, "loss") == [1]
        # The run of a living job stays open.
        with tracking.start_run(settings, "beside", job="test", params={}):
            assert client.get_run(run.id).info.status == "RUNNING"
    assert client.get_run(run.id).info.status == "FINISHED"


def test_two_processes_cannot_use_one_run(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        owner = run.spool.folder / "owner"
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner.parent.mkdir(parents=True)
    started = int(psutil.Process(beside.pid).create_time())
    owner.write_text(f"{socket.gethostname()} {beside.pid} {started}")
    with (
        pytest.raises(RayganError, match=f"r is in use by process {beside.pid}"),
        tracking.start_run(settings, "r", job="test", params={}, run_id=run.id),
    ):
        pass
    owner.write_text(f"{socket.gethostname()} {beside.pid} {started - 1000}")  # the id belongs to another process now
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id
    beside.kill()
    beside.wait()
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id


def test_records_that_cannot_be_sent_end_no_other_job(settings, monkeypatch, capsys):
    """The clients of artifacts' storages raise errors of their own."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(run.spool.folder.parent, run.id)
    spool.put_artifact(b"1", "a.txt")
    with monkeypatch.context() as patch:
        patch.setattr(orphans, "send_records", lambda *given: 1 / 0)
        with tracking.start_run(settings, "next", job="test", params={}):
            pass
    assert f"records in {spool.folder} are still waiting" in capsys.readouterr().err


def test_a_resumed_run_does_not_end_as_it_ended_before(settings):
    """Its first end waits on disk, since the server was down."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    left = Spool(run.spool.folder.parent, run.id)
    left.put_status("KILLED")
    left.put_metrics({"loss": 1.0}, 1)
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        wait_until(lambda: not again.spool.waiting(), "what was left is sent")
        assert run.client.get_run(run.id).info.status == "RUNNING"
    assert steps(run.client, run.id, "loss") == [1]
    assert run.client.get_run(run.id).info.status == "FINISHED"


def test_a_server_that_fails_for_a_moment_gets_no_second_run(settings, monkeypatch):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass

    def fails(*given, **options):
        raise MlflowException("API request failed with error code 503")

    monkeypatch.setattr(run.client.__class__, "update_run", fails)
    with (
        pytest.raises(RayganError, match="MLflow can't open a run"),
        tracking.start_run(settings, "r", job="test", params={}, run_id=run.id),
    ):
        pass


def test_a_search_ends_although_mlflow_is_away(settings, monkeypatch, capsys):
    """Its trials took hours. What is open is closed with the next job."""

    def fails(*given, **options):
        raise MlflowException("API request failed with error code 503")

    with tracking.start_run(settings, "search", job="test", params={}) as search:
        monkeypatch.setattr(search.client.__class__, "search_runs", fails)
        tracking.close_children(settings, search)
        monkeypatch.setattr(search.client.__class__, "log_inputs", fails)
        with pytest.raises(RayganError, match="MLflow can't record the data set: API request failed"):
            search.log_data("/shards", "digest", {})
    assert "warning: runs of stopped trials stay open for now: API request failed" in capsys.readouterr().err


@pytest.fixture
def another_job(settings, monkeypatch):
    """Starts and ends a job when a run is about to get its first owner."""
    write, started = Owner.write, []

    def slowly(owner, folder):
        if not started:
            started.append(folder)
            with tracking.start_run(settings, "beside", job="test", params={}):
                pass
        write(owner, folder)

    monkeypatch.setattr(Owner, "write", slowly)
    yield
    assert started


@pytest.mark.usefixtures("another_job")
def test_a_job_that_starts_at_the_same_moment_leaves_a_run_open(settings):
    with tracking.start_run(settings, "first", job="test", params={}) as run:
        assert run.client.get_run(run.id).info.status == "RUNNING"
        run.log_metrics({"loss": 1.0}, 1)
    assert steps(run.client, run.id, "loss") == [1]


#: Ctrl-C that arrived inside Ray's own code.
disguised = SystemError()
disguised.__cause__ = KeyboardInterrupt()


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED"), (disguised, "KILLED")]
)
def test_a_run_ends_as_its_job_ended(settings, error, status):
    with pytest.raises(type(error)), tracking.start_run(settings, "r", job="test", params={"a": {"b": 1}}) as run:
        raise error
    record = run.client.get_run(run.id)
    assert record.info.status == status
    assert record.data.params == {"a.b": "1"}


def test_the_reason_of_a_failure_is_reported_even_if_it_cannot_be_recorded(settings):
    def work():
        with tracking.start_run(settings, "full", job="test", params={}) as run:
            shutil.rmtree(run.spool.folder)
            run.spool.folder.write_text("in the way")
            with pytest.raises(RayganError, match=f"cannot write {run.spool.folder}"):
                run.spool.put_metrics({"loss": 1.0}, 1)
            raise RayganError("the reason")

    with pytest.raises(RayganError, match="the reason"):
        work()


def test_a_deleted_experiment_is_reported(settings):
    client = tracking.connect(settings)
    client.delete_experiment(client.create_experiment(settings.experiment))
    with (
        pytest.raises(RayganError, match="experiment: raygan was deleted"),
        tracking.start_run(settings, "r", job="test", params={}),
    ):
        pass


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}


def test_many_parameters_pictures_data_and_the_machine_are_recorded(settings, monkeypatch):
    """More parameters than MLflow takes in one call, in nested settings."""
    params = {"deep": {f"p{number}": "x" * 1000 for number in range(150)}}
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    settings = settings.model_copy(update={"system_metrics": True})
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with tracking.start_run(settings, "r", job="test", params=params) as run:
        run.log_data("s3://bucket/shards", "d" * 64, {"train": {"cat": 3}})
        for step in (0, 64):
            run.log_image(png.getvalue(), "samples", step)
        recorded = lambda: "system/cpu_utilization_percentage" in run.client.get_run(run.id).data.metrics  # noqa: E731
        wait_until(recorded, "how busy the machine is, is recorded")
    record = run.client.get_run(run.id)
    assert len(record.data.params) == 150
    assert record.data.params["deep.p149"] == "x" * 500
    (data,) = record.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.source_type, data.dataset.digest) == ("shards", "s3", "d" * 36)
    kept = sorted(file.path for file in run.client.list_artifacts(run.id, "images") if file.path.endswith("png"))
    assert [path.split("+timestamp")[0] for path in kept] == ["images/samples+step+0", "images/samples+step+64"]
    assert record.data.tags["mlflow.loggedImages"] == "True"
