"""What is said of other libraries' errors."""

import errno
import os
import sqlite3

import pytest

from raygan.errors import first_line, reason


def test_a_full_disk_is_said_with_what_to_do_whoever_found_it():
    database = sqlite3.connect(":memory:")
    database.execute("create table t (x)")
    database.execute("pragma max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("insert into t values (zeroblob(100000))")
    wrapped = RuntimeError(f"(raised as a result of autoflush)\n{full.value}\n[SQL: insert]")
    for error in (
        full.value,
        wrapped,
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError("No space left on device"),
    ):
        assert first_line(error) == reason(error) == "its disk is full: make room"
    assert reason(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"
