"""Runs of processes that are gone: closed by evidence, with their records, from any host."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from raygan import tracking
from raygan.errors import RayganError
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings
from raygan.tracking import heartbeat, orphans
from raygan.tracking.heartbeat import DEAD_AFTER_S, Heartbeat, Owner
from raygan.tracking.spool import Spool
from tests.helpers import wait_until
from tests.tracking.records import steps


def running(settings):
    """An MLflow run that nobody works on, and the client."""
    client = tracking.connect(settings)
    found = client.get_experiment_by_name(settings.experiment)
    experiment = found.experiment_id if found else client.create_experiment(settings.experiment)
    return client, client.create_run(experiment).info.run_id


def of_another_host(age_s):
    return Owner("pod-7", 1, 1, time.time() - age_s)


@pytest.mark.parametrize(
    ("age_s", "by_storage_s", "status"),
    [
        (DEAD_AFTER_S + 5, DEAD_AFTER_S + 5, "KILLED"),
        (DEAD_AFTER_S / 2, DEAD_AFTER_S / 2, "RUNNING"),
        (DEAD_AFTER_S + 5, 0, "RUNNING"),  # a clock was set
    ],
)
def test_another_hosts_run_is_closed_once_its_heart_has_stopped(settings, age_s, by_storage_s, status):
    """On storage that both hosts see, and by its clock."""
    client, run_id = running(settings)
    with tracking.start_run(settings, "first", job="test", params={}) as run:
        outbox = run.spool.folder.parent
    spool = Spool(outbox, run_id)
    spool.put_metrics({"loss": 4.0}, 1)
    of_another_host(age_s).write(str(spool.folder))
    os.utime(spool.folder / "owner", times=(time.time() - by_storage_s,) * 2)
    with tracking.start_run(settings, "next", job="test", params={}):
        assert client.get_run(run_id).info.status == status
    assert steps(client, run_id, "loss") == ([1] if status == "KILLED" else [])


@pytest.mark.parametrize("beats", [2, 1, 0])
def test_a_run_that_another_host_works_on_is_not_resumed(settings, monkeypatch, beats):
    """A pod that is gone looks the same until its next heartbeat is due; one that is being ended may beat once more."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        folder = str(run.spool.folder)
    of_another_host(20).write(folder)
    monkeypatch.setattr(heartbeat, "ALIVE_WITHIN_S", 30 if beats == 2 else 2.5)
    resumed = tracking.start_run(settings, "r", job="test", params={}, run_id=run.id)
    later = [threading.Timer(0.1 + 2 * n, of_another_host(-n).write, [folder]) for n in range(beats)]
    for each in later:
        each.start()
    if beats == 2:
        with pytest.raises(RayganError, match="r is in use by process 1 on pod-7"), resumed:
            pass
    else:
        with resumed as again:
            assert again.id == run.id


def test_a_process_of_this_host_is_looked_up_whatever_its_last_beat(tmp_path):
    mine = Owner.here()
    dataclasses.replace(mine, beat=mine.beat - 10 * DEAD_AFTER_S).write(str(tmp_path))
    assert Owner.read(str(tmp_path)).lives()
    dataclasses.replace(mine, started=mine.started - 1000).write(str(tmp_path))  # the clock was set
    assert Owner.read(str(tmp_path)).lives()
    Owner(mine.host, mine.pid, mine.started, mine.beat).write(str(tmp_path))  # an earlier version's
    assert Owner.read(str(tmp_path)).lives()
    Owner(mine.host, mine.pid, mine.started - 1000, mine.beat).write(str(tmp_path))  # the id is another process's now
    assert not Owner.read(str(tmp_path)).lives()
    dataclasses.replace(mine, since=mine.since - 1000).write(str(tmp_path))
    assert not Owner.read(str(tmp_path)).lives()
    dataclasses.replace(mine, boot="another").write(str(tmp_path))
    assert not Owner.read(str(tmp_path)).lives()
    (tmp_path / "owner").write_text("pod-7 1 1")  # an earlier version's: nothing is known
    assert Owner.read(str(tmp_path)).lives()


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    pafs.S3FileSystem(region="us-east-1", endpoint_override=endpoint, allow_bucket_creation=True).create_dir("gone")
    yield f"s3://gone/{tmp_path.name}?region=us-east-1&endpoint_override={endpoint}"
    server.stop()


def test_a_run_that_went_on_elsewhere_is_not_closed_for_its_first_process(bucket, settings, tmp_path, monkeypatch):
    """Killed here with records on this machine's disk, resumed by another host: that one's end counts."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remote = StorageSettings(storage=bucket, tracking_uri=f"sqlite:///{settings.storage}/mlflow.db")
    client, run_id = running(remote)
    spool = Spool(orphans.outbox_of(remote), run_id)
    dataclasses.replace(Owner.here(), since=-1.0).write(str(spool.folder))
    spool.put_metrics({"loss": 4.0}, 1)
    spool.put_status("KILLED")
    kept = storage.join(orphans.kept_outbox_of(remote), run_id)
    of_another_host(5).write(kept)
    with tracking.start_run(remote, "next", job="test", params={}):
        assert client.get_run(run_id).info.status == "RUNNING"
        assert Owner.read(kept).lives()
    client.set_terminated(run_id, "FINISHED")
    storage.delete(kept)
    with tracking.start_run(remote, "later", job="test", params={}):
        assert client.get_run(run_id).info.status == "FINISHED"
    assert steps(client, run_id, "loss") == [1]


def test_a_pod_that_is_gone_leaves_its_records_in_the_bucket(bucket, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remote = StorageSettings(storage=bucket, tracking_uri=f"sqlite:///{settings.storage}/mlflow.db")
    client, run_id = running(remote)
    with tracking.start_run(remote, "first", job="test", params={}):
        (outbox,) = storage.list_folders(storage.join(bucket, "outbox"), "*")
        (beside,) = storage.list_folders(outbox, "*")
        assert Owner.read(beside).lives()
    assert not storage.list_folders(outbox, "*")  # nothing is left of a run that has ended
    kept = storage.join(outbox, run_id)
    pod = Spool(tmp_path / "pod", run_id)
    heart = Heartbeat(pod, kept, every_s=0.05)
    pod.put_metrics({"loss": 4.0}, 1)
    pod.put_tags({"raygan.collapsed": "at 3 kimg"})
    wait_until(lambda: len(storage.list_files(kept, "*.json")) == 2, "the records are in the bucket")
    sent = pod.waiting()[0]
    content = sent.read_bytes()
    sent.unlink()
    wait_until(lambda: len(storage.list_files(kept, "*.json")) == 1, "what is sent is not kept")
    sent.write_bytes(content)
    wait_until(lambda: len(storage.list_files(kept, "*.json")) == 2, "the record is in the bucket again")
    heart.stop()
    shutil.rmtree(pod.folder)
    of_another_host(DEAD_AFTER_S + 5).write(kept)
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_S", -1.0)  # the bucket dates the file itself
    with tracking.start_run(remote, "next", job="test", params={}):
        record = client.get_run(run_id)
        assert (record.info.status, record.data.tags["raygan.collapsed"]) == ("KILLED", "at 3 kimg")
    assert steps(client, run_id, "loss") == [1]
    assert not storage.list_files(kept, "*")
