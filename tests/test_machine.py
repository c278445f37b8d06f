"""Limits of containers, and homes that can't be written."""

from __future__ import annotations

import os

import pytest
from pydantic import model_validator

from raygan import machine
from raygan.cli import run_job
from raygan.settings import Settings


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (  # version 2: the parent's limit holds, too
            {
                "proc/self/cgroup": "0::/pods/mine\n",
                "sys/fs/cgroup/pods/cpu.max": "150000 100000",
                "sys/fs/cgroup/pods/mine/cpu.max": "max 100000",
            },
            1.5,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n1:name=systemd:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_of_a_container_is_found(tmp_path, files, quota):
    write(tmp_path, files)
    assert machine.cpu_quota(str(tmp_path)) == quota


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/pods/mine\n",
                "sys/fs/cgroup/pods/memory.max": "5000\n",
                "sys/fs/cgroup/pods/memory.current": "3500\n",
                "sys/fs/cgroup/pods/memory.stat": "anon 2000\ninactive_file 500\n",
                "sys/fs/cgroup/pods/mine/memory.max": "max\n",
                "sys/fs/cgroup/pods/mine/memory.current": "2500\n",
                "sys/fs/cgroup/pods/mine/memory.stat": "inactive_file 500\n",
            },
            2000,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "4:memory:/pod\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": "6000\n",
                "sys/fs/cgroup/memory/pod/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
            },
            0,
        ),
    ],
)
def test_the_memory_that_a_container_has_left_is_found(tmp_path, files, free):
    write(tmp_path, files)
    found = machine.free_memory(str(tmp_path))
    assert found > 10**6 if free is None else found == free


def test_threads_are_limited_where_there_is_a_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    machine.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    machine.limit_threads()
    assert machine.cores() == 2
    assert os.environ.pop("OMP_NUM_THREADS") == "2"


def test_threads_are_limited_before_flags_are_checked(monkeypatch, capsys):
    """Checking them may load an objective, and torch with it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is restored
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.3)
    seen = []

    class Checked(Settings):
        @model_validator(mode="after")
        def _check(self):
            seen.append(os.environ.get("OMP_NUM_THREADS"))
            return self

    with pytest.raises(SystemExit):
        run_job(Checked, print, doc=None, argv=["--dry-run"])
    assert seen == ["1"]


@pytest.mark.parametrize("home", ["/proc/nohome", "/dev/null"])
def test_without_a_home_files_are_kept_among_temporary_ones(monkeypatch, tmp_path, home):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "")  # so that it is restored
    monkeypatch.delenv("MPLCONFIGDIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / ".cache" / "raygan"
    machine.place_caches()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setenv("HOME", home)
    assert machine.cache_folder().name.startswith("raygan-")
    machine.place_caches()
    assert os.environ["MPLCONFIGDIR"] == str(machine.cache_folder() / "matplotlib")
