"""The errors that end a job with one line instead of a traceback, and how to read other libraries' errors."""

import errno
import os
from collections.abc import Sequence


class RayganError(Exception):
    """Something other than the configuration is wrong: data, storage, cluster or server. Exit status 1.

    The message is one line that names the file, address or setting and says what to do. Names of files may have line
    breaks, terminal codes or bytes that aren't text; these are escaped.

    Args:
        messages: in words; usually one.
    """

    exit_status = 1

    def __init__(self, *messages: str):
        super().__init__(*map(printable, messages))

    def __str__(self) -> str:
        return "\nerror: ".join(self.args)


class ConfigurationError(RayganError):
    """The command line or a configuration file is wrong. Exit status 2."""

    exit_status = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, from `ray job stop`, a batch system or a node that is being drained. Exit status 143."""


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM behind an exception, or None. Inside Ray's code it may surface as a SystemError."""
    cause = error.__cause__ if isinstance(error, SystemError) else error
    return cause if isinstance(cause, KeyboardInterrupt) else None


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk is behind an exception, which libraries often wrap without the system's number."""
    said = str(error)
    return os.strerror(errno.ENOSPC) in said or "database or disk is full" in said  # SQLite's words


def reason(error: BaseException) -> str:
    """The system's words for an error, or the first line of its message: not all of Arrow's have the system's."""
    return (not is_full_disk(error) and getattr(error, "strerror", None)) or first_line(error)


def some(each: Sequence[str]) -> str:
    """The items joined, at most a dozen of them, since a data set of people has thousands of labels."""
    more = f" and {len(each) - 12:,} more labels" if len(each) > 12 else ""
    return ", ".join(each[:12]) + more


def printable(text: str) -> str:
    """Text for a terminal, with line breaks, terminal codes and bytes that aren't text escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message, or the error's type if there is no message; of a full disk, what to do."""
    return "its disk is full: make room" if error and is_full_disk(error) else _lines(error)[0]


def last_line(error: BaseException | None) -> str:
    """The last line of an error's message, the most useful one of a remote traceback; else the error's type."""
    return _lines(error)[-1]


def _lines(error: BaseException | None) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
