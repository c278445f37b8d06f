"""Every node must see a job's folders and files."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from raygan.data.settings import PrepareSettings
from raygan.errors import ConfigurationError
from raygan.runtime import shared
from raygan.runtime.shared import check_shared
from tests.runtime.nodes import another_node


@pytest.fixture(scope="module")
def second_node(ray_cluster, tmp_path_factory):
    """A second node without CPUs that sees another, empty folder in place of this one."""
    apart = tmp_path_factory.mktemp("apart")
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces")
    with another_node(0, [unshare, "--mount", "sh", "-c", f'mount -t tmpfs none {apart} && exec "$@"', "sh"]):
        yield apart


def test_several_machines_must_not_share_a_sqlite_file(
    second_node, new_storage, write_shards, train_settings, monkeypatch
):
    settings = train_settings(storage=str(new_storage), data=str(write_shards()), tracking_uri=None)
    monkeypatch.setattr(shared, "boot_id", lambda: "another")  # the job's; workers import the module themselves
    with pytest.raises(ConfigurationError, match="--tracking-uri: the cluster has several machines, and sharing"):
        check_shared(settings)
    check_shared(settings.model_copy(update={"tracking_uri": "http://mlflow:5000"}))


def test_a_folder_that_another_node_does_not_see_is_refused(second_node, new_storage, write_shards, train_settings):
    good = {"storage": str(new_storage), "data": str(write_shards()), "tracking_uri": None}
    check_shared(train_settings(**good))
    (second_node / "photos").mkdir()
    database = second_node / "mlflow.db"
    database.touch()
    for wrong, says in (
        ({"storage": str(second_node)}, f"--storage: {second_node} on this node is not visible to node"),
        ({"data": str(second_node / "photos")}, "--data"),
        ({"tracking_uri": f"sqlite:///{database}"}, "--tracking-uri: .* give the address of an MLflow server"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            check_shared(train_settings(**{**good, **wrong}))
    photos = {"storage": str(new_storage), "tracking_uri": None, "input": [str(new_storage)]}
    new = {**photos, "output": str(second_node / "shards")}
    with pytest.raises(ConfigurationError, match=f"--output: {new['output']} on this node is not visible to node"):
        check_shared(PrepareSettings(**new))
    assert os.listdir(new["output"]) == []
    os.rmdir(new["output"])
    check_shared(PrepareSettings(**new, dry_run=True))
    assert not os.path.exists(new["output"])
    with pytest.raises(ConfigurationError, match="--storage"):
        check_shared(PrepareSettings(**{**photos, "storage": f"file://{second_node}", "output": "s3://b/x"}))
