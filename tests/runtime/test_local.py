"""What a machine lacks is said in one line before Ray starts, or found elsewhere."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from raygan.errors import RayganError
from raygan.runtime import cluster, local


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The environment of a user whose home is in the test's folder; what a test sets in it is undone."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_a_machine_that_lacks_nothing_stays_as_it_is(environment):
    before = dict(os.environ)
    local.check_machine()
    assert dict(os.environ) == before


@pytest.mark.parametrize("home", ["/proc/nohome", "/dev/null"])
def test_without_a_home_the_token_is_in_the_environment(environment, home):
    environment.setenv("HOME", home)
    local.check_machine()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_full_temporary_folder_is_named(environment):
    environment.setattr(local.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e6))
    with pytest.raises(RayganError, match=r"temporary folder /tmp, whose disk is full \(1.0 MB left.*RAY_TMPDIR"):
        local.check_machine()


def test_a_temporary_folder_without_room_for_a_checkpoint_is_named_before_the_training(environment):
    environment.setattr(local.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100e6))
    local.check_scratch(100_000_000)
    with pytest.raises(RayganError, match=r"checkpoints of 120 MB .*temporary folder .*100.0 MB left.*with TMPDIR"):
        local.check_scratch(120_000_000)


def test_an_object_store_without_room_in_shared_memory_is_said(environment, capsys):
    """As in a container of Docker's, whose shared memory is 64 MB unless a flag says more."""
    environment.setattr(local.os.path, "isdir", lambda folder: True)
    environment.setattr(local.shutil, "disk_usage", lambda folder: SimpleNamespace(total=67_108_864))
    local.say_where_store_is(60e6)
    assert not capsys.readouterr().err
    local.say_where_store_is(2e9)
    assert "2 GB is on the temporary folder's disk, since /dev/shm has 0.067 GB" in capsys.readouterr().err


def test_a_temporary_folder_that_can_not_be_written_is_named(environment):
    environment.setenv("TMPDIR", "/proc/nowhere")
    with pytest.raises(RayganError, match="temporary folder /proc/nowhere, which can't be written"):
        local.check_machine()


def test_a_long_temporary_folder_is_replaced_unless_it_is_rays_own(environment, tmp_path, capsys):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    environment.setenv("TMPDIR", str(long))
    local.check_machine()
    assert os.environ.pop("RAY_TMPDIR") == "/tmp"  # noqa: S108
    assert "too long" in capsys.readouterr().err
    environment.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(RayganError, match="more than 38 bytes"):
        local.check_machine()


def test_the_address_of_a_dashboard_is_told_from_that_of_a_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with pytest.raises(RayganError, match=r"address of a dashboard: .*HOST:6379, or submit") as raised:
        cluster.connect()
    assert "\n" not in str(raised.value)
