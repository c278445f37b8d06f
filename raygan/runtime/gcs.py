"""How Google's storage differs from others, as pyarrow shows it.

Its client silently repeats a request for a minute before it gives up. A folder that has files but was never created is
in no listing.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.fs as pafs

from raygan.errors import first_line

#: Seconds for which the client may repeat the first request.
_PATIENCE_S = 5


def check_answers(root: str, bucket: str) -> None:
    """Raise OSError if nobody answers within seconds; any answer will do, and what it says matters later.

    Args:
        root: the bucket's URI, with its query.
        bucket: its name.
    """
    impatient, _ = pafs.FileSystem.from_uri(f"{root}{'&' if '?' in root else '?'}retry_limit_seconds={_PATIENCE_S}")
    try:
        impatient.get_file_info(f"{bucket}/.answers")
    except (OSError, pa.ArrowException) as error:
        if "UNAVAILABLE" in str(error):
            reason = re.split("message (?:of|was:) ", first_line(error).partition(" error_info=")[0])[-1]
            raise OSError(
                f"{reason}: check the network, and the credentials (GOOGLE_APPLICATION_CREDENTIALS); a public bucket "
                f"is gs://anonymous@{bucket}"
            ) from None


def inside(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The files and folders directly in a folder, as `get_file_info` lists them elsewhere."""
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    listed: dict[str, pafs.FileInfo] = {}
    for info in found:
        first, *more = info.path.removeprefix(path).strip("/").split("/")
        child = f"{path}/{first}"
        listed[child] = pafs.FileInfo(child, type=pafs.FileType.Directory) if more else info
    return list(listed.values())
