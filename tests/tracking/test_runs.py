"""Records on their way to MLflow: none lost, none twice, whatever the server or the process does."""

import math
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from raygan import tracking
from raygan.errors import RayganError
from raygan.runtime.settings import StorageSettings
from raygan.serve.model_store import ModelStore
from raygan.serve.settings import ServeSettings
from raygan.tracking import runs
from raygan.tracking.callback import MLflowCallback
from raygan.tracking.outbox import Sender, Spool, send_records
from raygan.tracking.runs import flatten


@pytest.fixture
def settings(new_storage):
    return StorageSettings(storage=str(new_storage), tracking_uri=None)


class Unreliable:
    """A client whose server stops answering for a while; what gets through is the real thing."""

    def __init__(self, client):
        self.client, self.down, self.refused = client, False, 0

    def __getattr__(self, name):
        if self.down:
            self.refused += 1
            raise ConnectionError("no answer")
        return getattr(self.client, name)


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(client, run_id, name):
    return [metric.step for metric in client.get_metric_history(run_id, name)]


def test_a_server_that_stops_answering_delays_nothing_and_loses_nothing(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("raygan.tracking.outbox._FIRST_WAIT", 0.05)
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    server = Unreliable(run.client)
    spool = Spool(tmp_path, run.id)
    sender = Sender(server, spool)
    spool.put_metrics({"loss": 1.0}, 1)
    until(lambda: not spool.waiting())
    server.down = True
    began = time.monotonic()
    for step in range(2, 50):
        spool.put_metrics({"loss": float(step)}, step)
    spool.put_artifact(b"\x89PNG", "pictures/a.png")
    assert time.monotonic() - began < 1
    until(lambda: server.refused > 2)
    assert len(spool.waiting()) == 49
    server.down = False
    assert sender.close(10) == 0
    assert steps(run.client, run.id, "loss") == list(range(1, 50))
    assert [a.path for a in run.client.list_artifacts(run.id, "pictures")] == ["pictures/a.png"]
    assert not spool.folder.exists()


def test_steps_that_come_again_after_a_restart_are_logged_once(settings, tmp_path):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        run.log_metrics({"loss": 1.0}, 10)
        run.log_metrics({"loss": 2.0}, 20)
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id
        for step in (10, 20, 30):
            again.log_metrics({"loss": 9.0, "kid": 0.1}, step)
        again.log_metrics({"late": 0.5}, 10)  # a metric of its own pace
    history = run.client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 1.0), (20, 2.0), (30, 9.0)]
    assert steps(run.client, run.id, "kid") == [10, 20, 30]
    assert steps(run.client, run.id, "late") == [10]


def test_steps_that_come_again_while_the_server_is_away_are_logged_once(settings, tmp_path):
    """The records of the killed worker and of its successor leave in one lot."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    for step in (10, 20, 30, 20, 30, 40):
        spool.put_metrics({"loss": float(len(spool.waiting()))}, step)
    send_records(run.client, spool, {})
    history = run.client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.0), (20, 1.0), (30, 2.0), (40, 5.0)]


def test_what_is_not_finite_is_told_by_a_tag(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        run.log_metrics({"loss": math.nan, "other": 3.0, "norm": math.inf}, 7)
    record = run.client.get_run(run.id).data
    assert record.metrics == {"other": 3.0}
    assert record.tags["not_finite"] == "loss, norm at step 7"


def test_a_killed_job_is_closed_and_its_records_sent_by_the_next(settings):
    """The child dies with records on disk, unsent; it can't be asked for anything any more."""
    child = f"""
import os
from raygan import tracking
from raygan.runtime.settings import StorageSettings
import raygan.tracking.outbox as spool
spool.Sender._send_all = lambda self: False
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
        # A living job's run is its own business.
        with tracking.start_run(settings, "beside", job="test", params={}):
            assert client.get_run(run.id).info.status == "RUNNING"
    assert client.get_run(run.id).info.status == "FINISHED"


def test_two_processes_cannot_work_on_one_run(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        owner = run.spool.folder / "owner"
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner.parent.mkdir(parents=True)
    began = int(psutil.Process(beside.pid).create_time())
    owner.write_text(f"{socket.gethostname()} {beside.pid} {began}")
    with (
        pytest.raises(RayganError, match=f"being worked on by process {beside.pid}"),
        tracking.start_run(settings, "r", job="test", params={}, run_id=run.id),
    ):
        pass
    owner.write_text(f"{socket.gethostname()} {beside.pid} {began - 1000}")  # the number is another process's now
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id
    beside.kill()
    beside.wait()
    with tracking.start_run(settings, "r", job="test", params={}, run_id=run.id) as again:
        assert again.id == run.id


#: Ctrl-C that came within Ray's own code.
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


def test_why_a_job_failed_is_said_even_where_nothing_can_be_recorded(settings):
    def work():
        with tracking.start_run(settings, "full", job="test", params={}) as run:
            shutil.rmtree(run.spool.folder)
            run.spool.folder.write_text("in the way")
            with pytest.raises(RayganError, match=f"cannot write {run.spool.folder}"):
                run.spool.put_metrics({"loss": 1.0}, 1)
            raise RayganError("the reason")

    with pytest.raises(RayganError, match="the reason"):
        work()


def test_the_callback_records_rank_0_and_failures(settings, tmp_path):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        callback = MLflowCallback(run.spool, step="images")
        callback.after_report(None, [{"images": 64, "loss": 0.5, "note": "text"}, {"images": 64, "loss": 9.0}], None)
        callback.after_exception(None, {1: ValueError("Traceback\nout of memory")})
    record = run.client.get_run(run.id).data
    assert record.metrics == {"images": 64.0, "loss": 0.5}
    assert record.tags["failure_1"] == "rank 1: out of memory"


def test_a_record_that_is_refused_holds_up_nothing(settings, tmp_path, capsys):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    spool.put_tags({"no\nname?": "x" * 10})
    spool.put_metrics({"before": 1.0}, 1)
    spool.put_metrics({"kid (2)": 1.0}, 1)
    spool.put_metrics({"loss": 1.0}, 1)
    send_records(MlflowClient(tracking.tracking_uri(settings)), spool, {})
    assert steps(run.client, run.id, "before") == steps(run.client, run.id, "loss") == [1]
    assert not spool.waiting()
    assert capsys.readouterr().err.count("refuses") == 2


class Refusing:
    """A registry that answers everything with one error."""

    def __init__(self, code):
        self.code = code

    def __getattr__(self, name):
        def refuse(*args, **kwargs):
            raise MlflowException("no", error_code=self.code)

        return refuse


def test_a_registry_that_does_not_answer_is_not_an_empty_one(settings):
    assert tracking.serving_classifier(tracking.connect(settings)) is None
    assert tracking.find_model(tracking.connect(settings), "nobody/3") is None
    away = Refusing(TEMPORARILY_UNAVAILABLE)
    for ask in (tracking.serving_classifier, tracking.serving_generators):
        with pytest.raises(RayganError, match="registry does not answer"):
            ask(away)


def test_the_service_goes_on_with_what_the_registry_said_last(settings):
    registry = ModelStore(ServeSettings(storage=settings.storage, tracking_uri=None))
    before = registry.champions()
    registry._client = Refusing(TEMPORARILY_UNAVAILABLE)
    assert registry.champions() == before
    with pytest.raises(RayganError, match="registry does not answer"):
        registry._ask()


def test_an_experiment_that_was_deleted_is_said(settings):
    client = tracking.connect(settings)
    client.delete_experiment(client.create_experiment(settings.experiment))
    with (
        pytest.raises(RayganError, match="opens no run in experiment raygan"),
        tracking.start_run(settings, "r", job="test", params={}),
    ):
        pass


@pytest.mark.parametrize(
    ("storage", "uri", "location"),
    [
        ("/here", None, "file:///here/artifacts"),
        ("/here", "postgresql://me:hush@host/db", "file:///here/artifacts"),
        ("s3://bucket/here?region=x", "sqlite:////there.db", "s3://bucket/here/artifacts"),
        ("s3://bucket/here", "http://mlflow:5000", None),
    ],
)
def test_artifacts_go_to_the_storage_unless_a_server_keeps_them(storage, uri, location):
    assert runs._artifact_location(StorageSettings(storage=storage, tracking_uri=uri)) == location


def test_a_package_that_artifacts_take_is_asked_for_before_the_work(settings, monkeypatch):
    monkeypatch.setattr(runs, "_is_installed", lambda module: False)
    tracking.connect(settings)
    records = f"sqlite:///{settings.storage}/mlflow.db"
    bucket = StorageSettings(storage="s3://bucket/here", tracking_uri=records, experiment="another")
    with pytest.raises(RayganError, match=r"in s3://bucket/here/artifacts, .* boto3: pip install 'raygan\[s3\]'"):
        tracking.connect(bucket)


def test_a_database_that_does_not_answer_is_said_without_its_password():
    settings = StorageSettings(storage="/here", tracking_uri="mysql+nothing://me:hush@127.0.0.1:9/db")
    with pytest.raises(RayganError, match=r"MLflow at .*127.0.0.1:9/db does not work") as raised:
        tracking.connect(settings)
    assert "hush" not in str(raised.value)


def test_a_storages_endpoint_is_the_one_of_its_artifacts(monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "another")
    runs._name_endpoint("s3://bucket/here?endpoint_override=minio:9000&scheme=http")
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "another"
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    runs._name_endpoint("s3://bucket/here?endpoint_override=minio:9000&scheme=http")
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://minio:9000"


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}
