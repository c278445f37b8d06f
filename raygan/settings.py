"""Typed configuration: the base classes that each room's settings build on.

1. A job has one flat settings class. Its fields are the keys of YAML files and the flags of the command line (`z_dim`
   is `--z-dim`), so a setting has the same name everywhere. A field declares meaning, unit, default and range once.
2. A settings class is composed of smaller ones. `--help` shows them as groups; a function that needs only some of the
   settings takes the smaller class.
3. `resolve` merges the class defaults, the preset, `--config` files and flags, in this order; later wins. Pydantic
   validates the result once, and from then on settings are frozen objects.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function, no_info_before_validator_function

from raygan.addresses import absolute, password, public, well_formed
from raygan.errors import ConfigurationError, first_line, reason
from raygan.registry import Registry

S = TypeVar("S", bound="Settings")


def option(default: Any, meaning: str, *, unit: str = "", **constraints: Any) -> Any:
    """A pydantic field whose description carries its unit, for `--help`.

    Args:
        default: ``...`` makes the field required.
        meaning: what the setting does.
        unit: in parentheses after the meaning.
        constraints: pydantic's `ge`, `gt`, `le`, `lt` or `default_factory`.
    """
    text = f"{meaning} ({unit})" if unit else meaning
    if "default_factory" in constraints:
        return Field(description=text, **constraints)
    return Field(default, description=text, **constraints)


def allowed_range(metadata: list[Any]) -> str:
    """A field's bounds in words, such as "1 to 64" or "above 0"; empty where there are none."""
    low = next((f"{m.ge}" for m in metadata if isinstance(m, Ge)), None)
    above = next((f"{m.gt}" for m in metadata if isinstance(m, Gt)), None)
    high = next((f"{m.le}" for m in metadata if isinstance(m, Le)), None)
    below = next((f"{m.lt}" for m in metadata if isinstance(m, Lt)), None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    parts = [
        f"at least {low}" if low is not None else "",
        f"above {above}" if above is not None else "",
        f"at most {high}" if high is not None else "",
        f"below {below}" if below is not None else "",
    ]
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class OneOf:
    """A pydantic annotation: the value is a name in a registry, as in ``Annotated[str, OneOf(OBJECTIVES)]``."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        known = self.registry.names()
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}{closest(name, known)}")
        return name


@dataclass(frozen=True)
class Switch:
    """A pydantic annotation of a choice that also works as a switch: ``--flag`` is one choice, ``--no-flag`` another.

    Attributes:
        on: the choice that true and the bare flag stand for.
        off: the choice that false and the negated flag stand for.
    """

    on: str
    off: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._choice, handler(source))

    def _choice(self, value: Any) -> Any:
        return (self.on if value else self.off) if isinstance(value, bool) else value


def _image_size(size: int) -> int:
    if size not in (32, 64, 128, 256):
        raise ValueError(f"must be a power of two from 32 to 256, not {size}")
    return size


ImageSize = Annotated[int, AfterValidator(_image_size)]


def _path_as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _without_secret(address: str) -> str:
    if password(address):
        raise ValueError(
            "must not contain a key, which logs and records would show: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY on every node, or whatever the storage's own tools read"
        )
    return address


#: A local path or a URI. Paths are made absolute: a cluster's processes have other working directories.
Address = Annotated[
    str,
    BeforeValidator(_path_as_text),
    AfterValidator(well_formed),
    AfterValidator(_without_secret),
    AfterValidator(absolute),
]

#: A name, a path or a URI.
NameOrAddress = Annotated[str, BeforeValidator(_path_as_text), AfterValidator(_without_secret)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, numbers are finite, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Heading of the class's fields in `--help`.
    group: ClassVar[str] = "options"

    #: Package whose YAML files are the job's presets; empty if it has none.
    preset_package: ClassVar[str] = ""

    #: Whether running the same command again resumes an interrupted job.
    resumes: ClassVar[bool] = False

    #: Inherited settings that the job takes and doesn't need; `--help` leaves them out.
    unlisted: ClassVar[frozenset[str]] = frozenset()

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values, for YAML files and MLflow."""
        return self.model_dump(mode="json")


def preset_names(settings_class: type[Settings]) -> list[str]:
    """The names of a job's presets: the YAML files in its `preset_package`."""
    if not settings_class.preset_package:
        return []
    files = resources.files(settings_class.preset_package).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_preset(settings_class: type[Settings], name: str) -> dict[str, Any]:
    """A preset's values. Raises ConfigurationError if the job has no such preset."""
    known = preset_names(settings_class)
    if name not in known:
        raise ConfigurationError(f"preset: {name!r} is unknown; choose one of {', '.join(known)}")
    text = resources.files(settings_class.preset_package).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last, and a value that YAML can't convert."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # PyYAML's for 2020-13-45, !!bool x and !!timestamp x
            kind, given = node.tag.rpartition(":")[2], reprlib.repr(node.value)
            raise yaml.constructor.ConstructorError(
                None, None, f"{given} is not a valid {kind}; put text in quotes", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def load_yaml(path: str, flag: str = "--config") -> dict[str, Any]:
    """A YAML file's values. Raises ConfigurationError if it can't be read or isn't a mapping.

    flag: that names the file, for messages.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            values = yaml.load(file, _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigurationError(f"{flag}: cannot read {path}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{flag}: {path} is not UTF-8: save it in this encoding") from None
    except (yaml.YAMLError, RecursionError) as error:
        where, why = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        at = f" at line {where.line + 1}" if where else ""
        raise ConfigurationError(f"{flag}: {path} is not valid YAML{at}: {why or first_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{flag}: {path} must contain `key: value` lines, not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def resolve(settings_class: type[S], values: Mapping[str, Any]) -> S:
    """Settings from the class's defaults, a preset, YAML files and values; later wins.

    Args:
        settings_class: the job's settings.
        values: by setting. ``preset`` names a preset, and ``config`` is a YAML file or a list of them; a file may
            name a preset too.

    Raises:
        ConfigurationError: one line for each mistake.
    """
    given = dict(values)
    config = given.pop("config", None) or []
    files = [load_yaml(path) for path in ([config] if isinstance(config, str) else config)]
    layers = [*files, given]
    preset = None
    if settings_class.preset_package:
        preset = next((name for name in [layer.pop("preset", None) for layer in layers][::-1] if name), None)
    merged = load_preset(settings_class, preset) if preset else {}
    for layer in layers:
        merged |= layer
    return validate(settings_class, merged)


def validate(settings_class: type[S], values: Mapping[str, Any]) -> S:
    """The settings object. Raises ConfigurationError, which names each wrong flag."""
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        lines = [_complaint(settings_class, problem) for problem in error.errors(include_url=False)]
        raise ConfigurationError(*dict.fromkeys(lines)) from None


def _complaint(settings_class: type[Settings], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    flag = "--" + location[0].replace("_", "-")
    if problem["type"] == "missing":
        return f"{flag} is required: {settings_class.model_fields[location[0]].description}"
    if problem["type"] == "extra_forbidden":
        known = [*settings_class.model_fields, *(["preset"] if settings_class.preset_package else [])]
        return f"{location[0]} is not a known setting{closest(location[0], known)}"
    given = problem["input"]
    quoted = problem["type"] == "string_type" and not isinstance(given, str | list | dict | None)
    hint = "; put it in quotes" if quoted else ""
    return f"{flag}: {message[0].lower()}{message[1:]} (got {_Short().repr(given)}{hint})"


class _Short(reprlib.Repr):
    """Values for messages: long ones are shortened, and addresses lack their secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2

    def repr_str(self, x: str, level: int) -> str:
        return repr(public(x)[:200])


def closest(given: str, known: list[str]) -> str:
    """A question that suggests the known word closest to the given one; empty if none is close."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
