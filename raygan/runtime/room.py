"""Whether disks have room for what a job is going to write, checked before the work."""

from __future__ import annotations

import sys

from raygan.errors import RayganError
from raygan.runtime.storage import room, size


def check_room(flag: str, address: str, needed: int) -> None:
    """Say how many bytes will be written to a local folder, and how many are free.

    Args:
        flag: that names the folder.
        address: of the folder, which need not exist; nothing is known about the room at a URI.
        needed: bytes at most.

    Raises:
        RayganError: the disk has less room.
    """
    free = room(address)
    if free is None:
        return
    if needed > free:
        raise RayganError(
            f"{flag}: up to {size(needed)} will be written to {address}, but its disk has room for {size(free)}: "
            f"make room, or choose a folder on another disk"
        )
    print(f"up to {size(needed)} will be written to {address}; its disk has room for {size(free)}")


def warn_of_room(flag: str, address: str, needed: int, what: str) -> None:
    """Warn if a local folder's disk has no room for so many bytes at most, which may prove to be fewer.

    what: what is written, in words.
    """
    free = room(address)
    if free is not None and needed > free:
        print(
            f"warning: {address} has room for {size(free)}, and up to {size(needed)} will be written there ({what}): "
            f"make room, or choose another {flag}",
            file=sys.stderr,
        )
