"""The ways in which a job ends before its time and says so in one line, without a traceback."""


class RayganError(Exception):
    """Something outside the command line is wrong: data, storage, cluster, server. Exit status 1.

    The message is one line that names the file, address or setting and the way out.
    """

    exit_status = 1


class ConfigurationError(RayganError):
    """The command line or a configuration file is wrong. Exit status 2."""

    exit_status = 2


class Terminated(KeyboardInterrupt):
    """Somebody sent SIGTERM: `ray job stop`, a batch system, a node that is drained. Exit status 143."""
