"""The edge: command line and YAML files in, validated settings out, exit statuses.

`argparse` parses, `pydantic` validates; this module only derives the flags from the settings class and
turns every complaint into one line that names the flag. Values stay strings until pydantic sees them, so a
flag and a YAML key are judged by the same rule.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from raygan.addresses import public_value
from raygan.errors import ConfigurationError, RayganError, Terminated, interruption
from raygan.settings import OneOf, S, Settings, allowed_range, closest, load_preset, load_yaml, preset_names, validate


def run_job(
    settings_class: type[S], main: Callable[[S], None], *, doc: str | None, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parse the command line, run `main` and exit: 0, 2 for a wrong command line, 130 or 143 when stopped, else 1.

    doc: shown by `--help`; the first line is the summary. `--dry-run` prints the resolved settings as YAML,
    unless the settings have a `dry_run` of their own, which the job then honours.
    """
    farewell = "interrupted"
    try:
        settings, dry_run = parse(settings_class, sys.argv[1:] if argv is None else argv, doc=doc)
        if dry_run:
            print(yaml.safe_dump(_shown(settings), sort_keys=False, allow_unicode=True), end="")
        else:
            _settle_ray()
            farewell += _way_on(settings)
            main(settings)
    except RayganError as error:
        # A message may hold a path with undecodable bytes; it must not become a traceback.
        text = f"error: {error}".encode("utf-8", "backslashreplace").decode()
        print(text, file=sys.stderr)
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, SystemError) as error:
        stop = interruption(error)
        if stop is None:
            raise
        print(farewell, file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _way_on(settings: Settings) -> str:
    if not settings.resumes:
        return ""
    named = "" if getattr(settings, "name", "") is not None else " with the --name that was said"
    return f"; the same command{named} goes on where this one stopped"


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings without passwords."""
    return {name: public_value(value) for name, value in settings.plain().items()}


def _settle_ray() -> None:
    """Have a Ray cluster that the job starts for itself listen on loopback only, as Ray does outside Linux; one that is
    there already stays as it is. And have no call connect by itself: a search's thread did so again when the job, being
    stopped, had just gone from the cluster.

    Ray reads this when it is imported, so it must not be yet.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def parse(settings_class: type[S], argv: Sequence[str], *, doc: str | None) -> tuple[S, bool]:
    """Settings from defaults, preset, files and flags, and whether `--dry-run` was given.

    Raises ConfigurationError with one line for each thing that is wrong.
    """
    flags = vars(_parser(settings_class, doc).parse_args(argv))
    dry_run = flags.pop("dry_run") if "dry_run" not in settings_class.model_fields else False
    files = flags.pop("config", None) or []
    preset = flags.pop("preset", None)
    values: dict[str, Any] = {}
    loaded = [load_yaml(path) for path in files]
    named = [file_values.pop("preset", None) for file_values in loaded]
    preset = preset or next((name for name in reversed(named) if name), None)
    if preset:
        values |= load_preset(settings_class, preset)
    for file_values in loaded:
        values |= file_values
    values |= flags
    return validate(settings_class, values), dry_run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            message = f"{given} is not a known flag{closest(given, list(self._option_string_actions))}"
        raise ConfigurationError(f"{message} (see --help)")


def _parser(settings_class: type[Settings], doc: str | None) -> _Parser:
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if "dry_run" not in settings_class.model_fields:
        parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and exit")
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of settings; may be repeated, later wins"
    )
    presets = preset_names(settings_class)
    if presets:
        parser.add_argument("--preset", metavar="NAME", help=f"settings by name: {', '.join(presets)}")
    groups: dict[str, Any] = {}
    for name, field in settings_class.model_fields.items():
        heading = _home(settings_class, name).group
        group = groups.setdefault(heading, parser.add_argument_group(heading))
        _add_flag(group, name, field)
    parser._action_groups.sort(key=lambda group: group.title != settings_class.group)
    return parser


def _home(settings_class: type[Settings], name: str) -> type[Settings]:
    """The class that declares the field, whose heading it is shown under."""
    homes = [c for c in settings_class.__mro__ if name in inspect.get_annotations(c)]
    return typing.cast("type[Settings]", homes[-1])


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    help_text = _help(field).replace("%", "%%")
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
    group.add_argument(
        flag,
        dest=name,
        nargs=("+" if field.is_required() else "*") if several else None,
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=help_text,
    )


def _choices(item: Any, field: FieldInfo) -> list[str]:
    """The allowed values of a setting, or of each part of a list; empty if there is no list of them."""
    if get_origin(item) is Literal:
        return [str(value) for value in get_args(item)]
    notes = getattr(item, "__metadata__", ()) or field.metadata  # of a list's parts, or of the field
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
