"""Where MLflow is, where artifacts go, and what is reported when something is missing."""

import importlib.util
import os

import pytest

from raygan import tracking
from raygan.errors import RayganError
from raygan.runtime.settings import StorageSettings
from raygan.tracking.connection import artifact_location


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
