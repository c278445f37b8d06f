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


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that an exception is, or is the guise of: one that comes while Ray's own code runs may
    leave it as a SystemError.
    """
    cause = error.__cause__ if isinstance(error, SystemError) else error
    return cause if isinstance(cause, KeyboardInterrupt) else None


def first_line(error: BaseException | None) -> str:
    """What a library's error says first; its kind if it says nothing."""
    return _lines(error)[0]


def last_line(error: BaseException | None) -> str:
    """What an error says last, which says most in a remote traceback; its kind if it says nothing."""
    return _lines(error)[-1]


def _lines(error: BaseException | None) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
