"""`serve run`, as `raygan serve` becomes it: python -m raygan.serve.foreground --service FILE.

Ray's command ends with status 0 after Ctrl-C, and with a stack trace after SIGTERM. Here either shuts the service down,
and the status is that of every other job: 130 or 143.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from raygan.cli import run_job
from raygan.errors import RayganError, Terminated
from raygan.serve.settings import ServeJobSettings


def serve_in_foreground(settings: ServeJobSettings) -> None:
    """Serve what Ray Serve's configuration file describes, until a signal comes.

    Raises:
        RayganError: the cluster doesn't answer, or Serve didn't start.
        KeyboardInterrupt: Ctrl-C, or SIGTERM (`Terminated`).
    """
    from ray import serve
    from ray.serve.scripts import cli

    from raygan.runtime import cluster

    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # until the service is shut down
        stopped.append(number)
        sys.exit()

    cluster.connect(log_to_driver=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        cli(["run", settings.service], standalone_mode=False)
    except SystemExit:
        serve.shutdown()
        if not stopped:  # `serve run` has said why
            raise RayganError("the service did not start") from None
        raise (Terminated if stopped == [signal.SIGTERM] else KeyboardInterrupt) from None


if __name__ == "__main__":
    run_job(ServeJobSettings, serve_in_foreground, doc=__doc__)
