"""Room on disks."""

import shutil
from types import SimpleNamespace

import pytest

from raygan.errors import RayganError
from raygan.runtime.room import check_room, warn_of_room


def test_too_little_room_is_said_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    folder = str(tmp_path / "new")
    check_room("--output", folder, 1_500_000)
    assert capsys.readouterr().out == f"up to 1.5 MB will be written to {folder}; its disk has room for 2.0 MB\n"
    with pytest.raises(RayganError, match=r"--output: up to 3.0 MB will be written .* has room for 2.0 MB: make room"):
        check_room("--output", folder, 3_000_000)
    for address, needed in ((folder, 1_500_000), ("s3://bucket/folder", 10**12)):
        warn_of_room("--storage", address, needed, "3 checkpoints")
    assert capsys.readouterr() == ("", "")
    warn_of_room("--storage", folder, 3_000_000, "3 checkpoints")
    said = f"warning: {folder} has room for 2.0 MB, and up to 3.0 MB will be written there (3 checkpoints): make room,"
    assert capsys.readouterr() == ("", f"{said} or choose another --storage\n")
