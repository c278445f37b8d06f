"""Where MLflow is, where artifacts go, and what is reported when something is missing."""

import http.server
import importlib.util
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from raygan import tracking
from raygan.errors import RayganError
from raygan.runtime.settings import StorageSettings
from raygan.tracking import connection
from raygan.tracking.connection import artifact_location


@pytest.mark.parametrize(
    ("storage", "uri", "location"),
    [
        ("/here", None, "file:///here/artifacts"),
        ("/here", "postgresql://me:hush@host/db", "file:///here/artifacts"),
        ("s3://bucket/here?region=x", "sqlite:////there.db", "s3://bucket/here/artifacts"),
        ("gs://anonymous@bucket/here?scheme=http", "sqlite:////there.db", "gs://bucket/here/artifacts"),
        ("s3://bucket/here", "http://mlflow:5000", None),
    ],
)
def test_artifacts_go_to_the_storage_unless_a_server_keeps_them(storage, uri, location):
    assert artifact_location(StorageSettings(storage=storage, tracking_uri=uri)) == location


def test_a_package_that_artifacts_need_is_asked_for_before_the_work(settings, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    tracking.connect(settings)
    records = f"sqlite:///{settings.storage}/mlflow.db"
    bucket = StorageSettings(storage="s3://bucket/here", tracking_uri=records, experiment="another")
    with pytest.raises(RayganError, match=r"in s3://bucket/here/artifacts .* boto3 .*: pip install 'raygan\[s3\]'"):
        tracking.connect(bucket)


def test_a_database_that_does_not_answer_is_reported_without_its_password():
    settings = StorageSettings(storage="/here", tracking_uri="mysql+nothing://me:hush@127.0.0.1:9/db")
    with pytest.raises(RayganError, match=r"MLflow at .*127.0.0.1:9/db does not work") as raised:
        tracking.connect(settings)
    assert "hush" not in str(raised.value)


def test_a_database_that_could_not_be_made_is_not_left_half_made(tmp_path, monkeypatch):
    settings, database = StorageSettings(storage=str(tmp_path)), tmp_path / "mlflow.db"

    def fill(client, name):
        database.write_bytes(b"half")
        raise OSError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.connection.MlflowClient, "get_experiment_by_name", fill)
        with pytest.raises(RayganError, match="its disk is full: make room"):
            tracking.connect(settings)
        assert not database.exists()
        database.write_bytes(b"another's")
        with pytest.raises(RayganError, match="its disk is full: make room"):
            tracking.connect(settings)
        assert database.exists()


def test_a_trial_waits_for_a_server_that_comes_back(monkeypatch, capsys):
    """It would fail at once, three times, and the search would end without it."""
    answers, waited = [RayganError("MLflow does not answer"), RayganError("MLflow does not answer"), None], []

    def check(uri):
        answer = answers.pop(0)
        if answer:
            raise answer

    monkeypatch.setattr(connection, "_check_server", check)
    monkeypatch.setattr(connection.time, "sleep", waited.append)
    tracking.await_server(StorageSettings(storage="/here", tracking_uri="http://mlflow:5000"), 600)
    assert (len(waited), answers) == (2, [])
    assert capsys.readouterr().err.count("waiting for 10 minutes at most: MLflow does not answer") == 1
    answers.append(RayganError("MLflow does not answer"))
    tracking.await_server(StorageSettings(storage="/here", tracking_uri="http://mlflow:5000"), 0)
    tracking.await_server(StorageSettings(storage="/here", tracking_uri=None), 600)
    assert len(answers) == 1


def test_a_database_that_another_job_works_on_is_not_a_wrong_address(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_TABLES_S", 0.1)
    records = tmp_path / "mlflow.db"
    with FileLock(f"{records}.lock"), pytest.raises(RayganError, match="another job has been working on the tables"):
        tracking.connect(StorageSettings(storage=str(tmp_path), tracking_uri=None))


def test_artifacts_use_the_endpoint_of_the_storage(settings, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "another")
    records = f"sqlite:///{settings.storage}/mlflow.db"
    bucket = StorageSettings(
        storage="s3://bucket/here?endpoint_override=minio:9000&scheme=http", tracking_uri=records, experiment="another"
    )
    tracking.connect(bucket)
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "another"
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    tracking.connect(bucket)
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://minio:9000"


@pytest.mark.parametrize("name", ["a?b=1", "feature%2Fcats", "h#x y é"])
def test_a_storage_of_any_name_has_its_database_and_artifacts_inside(tmp_path, empty_records, name):
    storage = tmp_path / "st" / name
    storage.mkdir(parents=True)
    shutil.copy(empty_records, storage)
    settings = StorageSettings(storage=str(storage), tracking_uri=None)
    with tracking.start_run(settings, "run", job="test", params={}) as run:
        run.log_bytes(b"1", "pictures/a.png")
    assert [path.name for path in storage.rglob("a.png")] == ["a.png"]
    assert [path.name for path in (tmp_path / "st").iterdir()] == [name]
    assert tracking.connect(settings).get_run(run.id).info.status == "FINISHED"


def test_a_deleted_experiment_is_refused_with_the_way_out(settings):
    client, number = tracking.check_records(settings)
    client.delete_experiment(number)
    with pytest.raises(RayganError, match=f"--experiment: raygan was deleted .*restore --experiment-id {number}"):
        tracking.check_records(settings)
    tracking.connect(settings)  # reading needs no experiment
    tracking.check_records(settings.model_copy(update={"experiment": "another"}))


def test_a_place_for_artifacts_that_can_not_be_written_is_found_before_the_work(settings):
    Path(settings.storage, "artifacts").write_text("in the way")
    with pytest.raises(RayganError, match=r"artifacts in file://.*/artifacts, where nothing can be written"):
        tracking.check_records(settings)


@pytest.fixture
def no_web_server():
    """The address of a server that speaks another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (None, "SSH-2.0-x"),
        ("http://mlflow:port", "nonnumeric port"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://ml flow:5000", "URL can't contain control characters"),
    ],
)
def test_an_address_that_is_no_web_servers_is_reported_in_one_line(no_web_server, uri, says):
    settings = StorageSettings(storage="/here", tracking_uri=uri or no_web_server)
    with pytest.raises(RayganError, match=rf"^MLflow at http://.* does not answer \({says}.*correct --tracking-uri"):
        tracking.connect(settings)


def test_a_proxy_in_the_way_of_a_server_is_named(monkeypatch):
    settings = StorageSettings(storage="/here", tracking_uri="http://localhost:9")
    with pytest.raises(RayganError, match="start it"):
        tracking.connect(settings)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(RayganError, match=r"proxy http://127.0.0.1:9 .*add localhost to no_proxy"):
        tracking.connect(settings)
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(RayganError, match="start it"):
        tracking.connect(settings)


@pytest.fixture
def mlflow_server():
    """A stand-in for an MLflow server that keeps artifacts itself: what it has been sent by path, and its address."""
    kept, about = {}, {"experiment_id": "1", "artifact_location": "mlflow-artifacts:/1", "lifecycle_stage": "active"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(json.dumps({"experiment": {"name": "raygan", **about}}).encode())

        def do_PUT(self):
            kept[self.path] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(b"{}", 507 if "full" in kept else 200)

        def do_DELETE(self):
            self._answer(b"{}")

        def _answer(self, content, status=200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield kept, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_artifacts_that_a_server_keeps_are_tried_there_and_not_in_a_folder_of_that_name(
    mlflow_server, tmp_path, monkeypatch
):
    kept, uri = mlflow_server
    monkeypatch.chdir(tmp_path)
    settings = StorageSettings(storage=str(tmp_path / "storage"), tracking_uri=uri)
    _, experiment = tracking.check_records(settings)
    assert experiment == "1"
    assert list(kept) == ["/api/2.0/mlflow-artifacts/artifacts/1/.writable"]
    assert not list(tmp_path.iterdir())
    kept["full"] = b""
    with pytest.raises(RayganError, match=r"artifacts in mlflow-artifacts:/1, where nothing can be written: .*507"):
        tracking.check_records(settings)
