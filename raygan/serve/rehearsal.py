"""Loading a version for the first time, in a process of its own: python -m raygan.serve.rehearsal FOLDER < SETTINGS.

Whatever is wrong with a version, up to a death for lack of memory, then costs that process and not the one that serves
other versions. The process is the first that Linux ends if memory runs out, and yields cores to replicas. It also finds
out what takes seconds of computing: whether the version's batches must be padded.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raygan.errors import RayganError, last_line
from raygan.serve.messages import ModelVersion
from raygan.serve.model_store import Files, write_files
from raygan.serve.settings import ServeSettings

#: Seconds within which a version must load and compute a batch.
_MOST_SECONDS = 120.0

_COMMAND = (sys.executable, "-m", "raygan.serve.rehearsal")


def rehearse(files: Files, settings: ServeSettings, command: Sequence[str] = _COMMAND) -> bool:
    """Load a version's files elsewhere, and return whether its batches must be padded here.

    Args:
        files: the version's.
        settings: of the service.
        command: the process, which gets the folder, and the settings as JSON on standard input.

    Raises:
        RayganError: it failed, was killed or took too long.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_files(files, Path(scratch))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                [*command, scratch],
                input=json.dumps(settings.plain()).encode(),  # everybody can read a command line
                env=environment,
                capture_output=True,
                timeout=_MOST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise RayganError(f"loading it takes more than {_MOST_SECONDS:g} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RayganError(f"a process that loaded it on trial was ended by {name}, probably for lack of memory")
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RayganError(lines[-1] if lines else f"loading it on trial failed with status {done.returncode}")
    return bool(json.loads(done.stdout.splitlines()[-1])["padded"])


def main(folder: str) -> None:
    """Load the files in the folder as a replica does, and print what was found out; else status 1 and one line."""
    os.nice(4)  # on clusters, workers are at 15: at more, a busy machine would never run it
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000")
    from raygan.serve.replicas import Replica  # only now: it imports torch

    async def fetch(model: ModelVersion) -> Files:
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    plain: dict[str, Any] = json.load(sys.stdin)
    try:
        found = asyncio.run(Replica(ServeSettings(**plain), fetch).prepare(ModelVersion("on trial", "1")))
    except Exception as error:
        sys.exit(last_line(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
