"""What a Ray cluster on this machine needs before Ray starts it: room for its files, short paths, a token.

Ray itself would wait for a minute and end with pages of its processes' logs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from raygan.errors import RayganError, reason

#: Bytes that Ray's logs and sockets need in the temporary folder at the least.
_ROOM = 50e6

#: Longest path of the temporary folder, in bytes: that of a socket inside may have 107.
_LONGEST = 38

#: Where Linux has shared memory.
_SHARED = "/dev/shm"  # noqa: S108 - nothing is written there

#: Where Ray looks for its temporary folder first.
_TMPDIR = "RAY_TMPDIR"


def check_machine() -> None:
    """Check the temporary folder and the token, and choose others where that helps.

    Raises:
        RayganError: there is no temporary folder that will do.
    """
    _choose_temporary_folder()
    _have_token()


def check_scratch(needed: int) -> None:
    """Raise RayganError if the temporary folder has no room for checkpoints, which are written there before Ray copies
    them to the storage. If only writing the first one showed that, the training up to then would be lost.

    needed: bytes of one checkpoint.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RayganError(
            f"checkpoints of {needed / 1e6:.0f} MB are written to the temporary folder {folder} first, whose disk is "
            f"full ({free / 1e6:.1f} MB left): name another with TMPDIR"
        )


def say_where_store_is(memory: float) -> None:
    """Print a note if shared memory is too small for Ray's object store, as in containers: the store is on a disk then.

    memory: of the store, in bytes.
    """
    room = shutil.disk_usage(_SHARED).total if os.path.isdir(_SHARED) else memory
    if room < memory:
        print(
            f"note: Ray's object store of {memory / 1e9:.2g} GB is on the temporary folder's disk, since {_SHARED} has "
            f"{room / 1e9:.2g} GB: photos are read faster with more (docker's --shm-size, or an emptyDir in memory "
            f"on Kubernetes)",
            file=sys.stderr,
        )


def _choose_temporary_folder() -> None:
    folder = os.environ.get(_TMPDIR) or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST and _TMPDIR not in os.environ and not _objection("/tmp"):  # noqa: S108
        print(f"Ray's files go to /tmp/ray: the path of {folder} is too long for its sockets", file=sys.stderr)
        os.environ[_TMPDIR] = folder = "/tmp"  # noqa: S108
    objection = _objection(folder)
    if objection:
        raise RayganError(
            f"Ray keeps logs and sockets in the temporary folder {folder}, {objection}: name another with {_TMPDIR}"
        )


def _objection(folder: str) -> str:
    """Why Ray can't use a temporary folder; empty if it can."""
    if len(os.fsencode(folder)) > _LONGEST:
        return f"whose path has more than {_LONGEST} bytes"
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"which can't be written ({reason(error)})"
    return f"whose disk is full ({free / 1e6:.1f} MB left, {_ROOM / 1e6:.0f} MB needed)" if free < _ROOM else ""


def _have_token() -> None:
    """Put a token into the environment if Ray can't write one to the home."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except (OSError, RuntimeError):  # read-only, or no home at all
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
