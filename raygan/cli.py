"""The edge: a command line and YAML files in, validated settings and an exit status out.

`argparse` parses, pydantic validates. This module derives the flags and their help from the settings class, and turns
each mistake into one line that names the flag. Values stay strings until pydantic sees them, so a flag and a YAML key
follow the same rules.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import inspect
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from raygan.addresses import public_value
from raygan.errors import ConfigurationError, RayganError, Terminated, first_line, interruption, is_full_disk
from raygan.machine import limit_threads, place_caches
from raygan.settings import OneOf, S, Settings, Switch, allowed_range, closest, preset_names, resolve


@dataclass(frozen=True)
class Job:
    """A job of the command line. Listing jobs and parsing flags imports neither Ray nor torch.

    Attributes:
        summary: one line: what the job does.
        settings: its settings class, as ``module:Class``.
        function: what does the work, as ``module:function``. It takes the settings. If its result has `to_json`,
            that becomes the last line of standard output; an int becomes the exit status.
        examples: command lines for `--help`, without the program's name.
        notes: what else `--help` says.
        takes_command: the function also takes the list of words after ``--``.
    """

    summary: str
    settings: str
    function: str
    examples: Sequence[str] = ()
    notes: str = ""
    takes_command: bool = False

    def description(self, program: str) -> str:
        """What `--help` says above the flags."""
        examples = "\n".join(f"  {program} {example}".rstrip() for example in self.examples)
        width = min(110, shutil.get_terminal_size().columns - 2)  # argparse's own, but for wide terminals
        return "\n\n".join(part for part in (self.summary, examples, textwrap.fill(self.notes, width)) if part)

    def run(self, program: str, argv: Sequence[str]) -> NoReturn:
        """Run the job and exit.

        Args:
            program: what users type before the flags, such as ``python jobs/train.py``.
            argv: the flags.
        """
        command: list[list[str]] = []
        if self.takes_command:
            at = argv.index("--") if "--" in argv else len(argv)
            argv, command = argv[:at], [list(argv[at + 1 :])]

        def work(settings: Settings) -> None:
            result = load(self.function)(settings, *command)
            if hasattr(result, "to_json"):
                print(strict_json(result.to_json()))
            elif isinstance(result, int):
                sys.exit(result)

        usage = program.removeprefix("python jobs/")
        run_job(load(self.settings), work, doc=self.description(program), argv=argv, program=usage)


def strict_json(text: str, indent: int | None = None) -> str:
    """The same JSON with null for NaN and infinity, which Python writes and other parsers refuse."""
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent)


def load(path: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def run_job(
    settings_class: type[S],
    main: Callable[[S], None],
    *,
    doc: str | None,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Parse the command line, run `main` and exit: 0, 2 for a wrong command line, 130 or 143 when stopped, else 1.

    `--dry-run` prints the resolved settings as YAML, unless the settings have a `dry_run` of their own, which the job
    then honors.

    Args:
        settings_class: the job's settings.
        main: what does the work.
        doc: what `--help` says above the flags.
        argv: the flags; by default those of this process.
        program: the program's name in `--help`; by default that of this process.
    """
    farewell = "interrupted"
    _open_missing_streams()
    limit_threads()  # before flags are checked, for which an objective may be loaded, and torch with it
    # Labels and paths may hold what a terminal can't show, or bytes that aren't text: neither is a reason to stop. A
    # log gets each line at once, in order with those of standard error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    with _quiet_end(), guarded_output():
        try:
            _check_current_folder()
            settings, dry_run = parse(settings_class, sys.argv[1:] if argv is None else argv, doc=doc, program=program)
            if dry_run:
                print(yaml.safe_dump(_shown(settings), sort_keys=False, allow_unicode=True), end="")
            else:
                configure_ray()
                # A log would be filled by a bar that moves all the time. tqdm reads this on import.
                if not sys.stderr.isatty():
                    os.environ.setdefault("TQDM_MININTERVAL", "10")
                farewell += _way_on(settings)
                main(settings)
        except RayganError as error:
            # A message may hold a path with undecodable bytes, which must not become a traceback.
            text = f"error: {error}".encode("utf-8", "backslashreplace").decode()
            print(text, file=sys.stderr)
            sys.exit(error.exit_status)
        except (KeyboardInterrupt, SystemError) as error:
            stop = interruption(error)
            if stop is None:
                raise
            print(farewell, file=sys.stderr)
            sys.exit(143 if isinstance(stop, Terminated) else 130)
    sys.exit(0)


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Once the block is over, a signal ends the process at once, without a traceback.

    Only Ray's own end is left then, which takes seconds. What Ray has started ends with this process.
    """

    def end(number: int, _: object) -> None:
        os._exit(128 + number)

    def heed_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)

    try:
        yield
    finally:
        atexit.register(heed_signals)  # after Ray has registered its end, so this comes first


@contextmanager
def guarded_output() -> Iterator[None]:
    """Exit with status 1, without a traceback, if a disk is full or nobody reads what the block prints."""
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        full = is_full_disk(error)
        if not (full or isinstance(error, BrokenPipeError)):
            raise
        if _takes_output():
            if not full:
                problem = f"a connection was lost ({first_line(error)}): run the command again"
            elif file := getattr(error, "filename", None):
                problem = f"the disk of {file} is full: make room"
            else:
                problem = f"a disk is full (that of {tempfile.gettempdir()}?): make room"
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(1)
        # What is still buffered can't be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if full:  # else the reader of our output is gone (`| head`); nobody is left to tell
            print("error: standard output can't be written: its disk is full", file=sys.stderr)
        sys.exit(1)


def _takes_output() -> bool:
    """Whether standard output can be written. Without a buffer, only a line shows that."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.write_through:
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _open_missing_streams() -> None:
    """Give a process that was started without output streams (``2>&-``) some that lead nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RayganError("the current folder has been removed: change to one that exists") from None


def _way_on(settings: Settings) -> str:
    if not settings.resumes:
        return ""
    named = "" if getattr(settings, "name", "") is not None else ", with the --name printed above if there is one,"
    return f"; the same command{named} resumes it"


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings without passwords."""
    return {name: public_value(value) for name, value in settings.plain().items()}


def configure_ray() -> None:
    """Set Ray's environment variables for a job. Ray reads them on import, so call this before importing Ray.

    A Ray cluster that the job starts for itself listens on loopback only, as Ray does outside Linux. Its dashboard has
    five minutes to start: on a busy machine it takes more than Ray's one. No call connects to a cluster implicitly:
    otherwise a search's thread would reconnect after the stopped job has disconnected.
    Workers of a local cluster are as nice as the job. By default they yield to all other processes of the session, and
    the threads of a training wait for the slowest: a busy program made one on two cores fifty times as slow.
    """
    limit_threads()
    place_caches()
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "300")
    # Ray colors what its processes print, `serve`'s log among it, wherever it goes.
    if os.environ.get("NO_COLOR") or not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    # Serve's controller ends in the middle of the call that ends it, which Ray would report as a failure.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"Task ServeController\.graceful_shutdown failed")
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def parse(
    settings_class: type[S], argv: Sequence[str], *, doc: str | None, program: str | None = None
) -> tuple[S, bool]:
    """Settings from defaults, preset, files and flags, and whether `--dry-run` was given.

    Raises:
        ConfigurationError: one line for each mistake.
    """
    flags = vars(_parser(settings_class, doc, program).parse_args(argv))
    dry_run = flags.pop("dry_run") if "dry_run" not in settings_class.model_fields else False
    return resolve(settings_class, flags), dry_run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            message = f"{given} is not a known flag{closest(given, list(self._option_string_actions))}"
        raise ConfigurationError(f"{message} (see --help)")


def _parser(settings_class: type[Settings], doc: str | None, program: str | None) -> _Parser:
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(program, description=doc, formatter_class=style, allow_abbrev=False)
    if "dry_run" not in settings_class.model_fields:
        parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and exit")
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of settings; may be repeated, the last one wins"
    )
    presets = preset_names(settings_class)
    if presets:
        parser.add_argument("--preset", metavar="NAME", help=f"a named set of settings: {', '.join(presets)}")
    groups: dict[str, Any] = {}
    for name, field in settings_class.model_fields.items():
        heading = _home(settings_class, name).group
        group = groups.setdefault(heading, parser.add_argument_group(heading))
        _add_flag(group, name, field, listed=name not in settings_class.unlisted)
    parser._action_groups.sort(key=lambda group: group.title != settings_class.group)
    return parser


def _home(settings_class: type[Settings], name: str) -> type[Settings]:
    """The class that declares the field; `--help` shows the field under its heading."""
    homes = [c for c in settings_class.__mro__ if name in inspect.get_annotations(c)]
    return typing.cast("type[Settings]", homes[-1])


def _add_flag(group: Any, name: str, field: FieldInfo, *, listed: bool) -> None:
    flag = "--" + name.replace("_", "-")
    help_text = _help(field).replace("%", "%%") if listed else argparse.SUPPRESS
    kind = _without_none(field.annotation)
    if kind is bool:
        group.add_argument(
            flag, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text
        )
        return
    several = get_origin(kind) is list
    item = get_args(kind)[0] if several else kind
    choices = _choices(item, field)
    if choices:
        metavar = "{" + ",".join(choices) + "}"
    else:
        metavar = {int: "N", float: "X"}.get(item, name.rsplit("_", 1)[-1].upper())
    switch = any(isinstance(note, Switch) for note in field.metadata)
    group.add_argument(
        flag,
        dest=name,
        nargs="?" if switch else ("+" if field.is_required() else "*") if several else None,
        const=True if switch else None,
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=help_text,
    )
    if switch:
        opposite = f"--no-{flag.removeprefix('--')}"
        group.add_argument(
            opposite, dest=name, action="store_false", default=argparse.SUPPRESS, help=f"turns {flag} off"
        )


def _choices(item: Any, field: FieldInfo) -> list[str]:
    """The allowed values of a setting, or of a list's items; empty if it isn't a choice."""
    if get_origin(item) is Literal:
        return [str(value) for value in get_args(item)]
    notes = getattr(item, "__metadata__", ()) or field.metadata  # the list's items', or the field's
    return next((note.registry.names() for note in notes if isinstance(note, OneOf)), [])


def _help(field: FieldInfo) -> str:
    notes = [allowed_range(field.metadata)]
    if field.is_required():
        notes.append("required")
    else:
        default = field.get_default(call_default_factory=True, validated_data={})
        if default not in (None, [], ""):
            notes.append(f"default {public_value(default)}")
    shown = "; ".join(note for note in notes if note)
    return f"{field.description} [{shown}]" if shown else str(field.description)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0]
    return annotation
