"""`serve run`, as `raygan serve` becomes it: python -m raygan.serve.foreground --service FILE.

Ray's command ends with status 0 after Ctrl-C, and with a stack trace after SIGTERM. Here either shuts the service down,
and the status is that of every other job: 130 or 143.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from raygan.addresses import public
from raygan.cli import run_job
from raygan.errors import ConfigurationError, RayganError, Terminated
from raygan.serve.settings import ServeJobSettings, ServeSettings
from raygan.settings import validate


def serve_in_foreground(settings: ServeJobSettings) -> None:
    """Serve what Ray Serve's configuration file describes, until a signal comes.

    Raises:
        ConfigurationError: the cluster's processes would look for models elsewhere.
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
    check_places(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        cli(["run", settings.service], standalone_mode=False)
    except SystemExit:
        serve.shutdown()
        if not stopped:  # `serve run` has said why
            raise RayganError("the service did not start") from None
        raise (Terminated if stopped == [signal.SIGTERM] else KeyboardInterrupt) from None


def check_places(settings: ServeJobSettings) -> None:
    """Check that the service looks for models where the flags say.

    A process of the cluster fills in what the file leaves out, from the environment in which Ray was started there.

    Raises:
        ConfigurationError: it would look elsewhere.
    """
    import ray

    from raygan.serve.app import read_service

    for application in read_service(settings.service).applications:
        completed = ray.remote(num_cpus=0, runtime_env=application.runtime_env)(validate)
        try:
            there = ray.get(completed.remote(ServeSettings, application.args))
        except ray.exceptions.RayError:
            continue  # the deployment fails likewise, and says why
        for name in {"storage", "tracking_uri"} - set(application.args):
            ours, theirs = (public(getattr(each, name) or "unset") for each in (settings, there))
            if ours != theirs:
                raise ConfigurationError(
                    f"--{name.replace('_', '-')}: {ours} here, but {theirs} on the cluster, where the service runs: "
                    f"set {name} under args in {settings.service}, or start Ray with the same RAYGAN_STORAGE and "
                    f"MLFLOW_TRACKING_URI"
                )


if __name__ == "__main__":
    run_job(ServeJobSettings, serve_in_foreground, doc=__doc__)
