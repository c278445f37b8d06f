"""Typed configuration: every setting's meaning, unit, default and range, in one place.

The mental model:

1. Each job has one flat settings class; its fields are the keys of YAML files and the flags of the command
   line (`z_dim` is `--z-dim`), so that a setting has the same name everywhere.
2. A class is composed of small ones by concern; `--help` shows them as groups, and a function that needs
   one concern takes that class.
3. Values come from the class defaults, then the preset, then `--config` files, then flags; later wins.
   `raygan.cli` merges them and pydantic validates the result once. After that settings are frozen objects.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from raygan.addresses import absolute, password, public_value
from raygan.errors import ConfigurationError
from raygan.registry import Registry

S = TypeVar("S", bound="Settings")


def option(default: Any, meaning: str, *, unit: str = "", **constraints: Any) -> Any:
    """A pydantic field whose description carries its unit, for `--help`.

    default: ``...`` makes the field required. constraints: pydantic's `ge`, `gt`, `le`, `lt`, or
    `default_factory`.
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


def _image_size(size: int) -> int:
    if size not in (32, 64, 128, 256):
        raise ValueError(f"must be a power of two from 32 to 256, not {size}")
    return size


ImageSize = Annotated[int, AfterValidator(_image_size)]


def _without_secret(address: str) -> str:
    if password(address):
        raise ValueError(
            "must not carry a key, which logs and records would show: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or what else the storage's own tools take, on every node"
        )
    return address


#: A local path or a URI. Paths are made absolute: the processes of a cluster stand in folders of their own.
Address = Annotated[str, AfterValidator(_without_secret), AfterValidator(absolute)]

#: Something by name, by path or by URI.
NameOrAddress = Annotated[str, AfterValidator(_without_secret)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, numbers are finite, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Heading of the class's fields in `--help`.
    group: ClassVar[str] = "options"

    #: The package whose YAML files are the job's presets; empty for none.
    preset_package: ClassVar[str] = ""

    #: Whether the job goes on, when the same command is given again, with what was interrupted.
    resumes: ClassVar[bool] = False

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values, as YAML files and MLflow have them."""
        return self.model_dump(mode="json")


def preset_names(settings_class: type[Settings]) -> list[str]:
    """The names of a job's presets, which are YAML files in its `preset_package`."""
    if not settings_class.preset_package:
        return []
    files = resources.files(settings_class.preset_package).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_preset(settings_class: type[Settings], name: str) -> dict[str, Any]:
    """A preset's values. Raises ConfigurationError if the job has no preset of that name."""
    known = preset_names(settings_class)
    if name not in known:
        raise ConfigurationError(f"preset: {name!r} is unknown; choose one of {', '.join(known)}")
    text = resources.files(settings_class.preset_package).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def load_yaml(path: str) -> dict[str, Any]:
    """Values of a YAML file. Raises ConfigurationError if it can't be read or isn't a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigurationError(f"config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" at line {where.line + 1}" if where else ""
        raise ConfigurationError(f"config: {path} is not valid YAML{at}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"config: {path} must hold `key: value` lines, not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def validate(settings_class: type[S], values: dict[str, Any]) -> S:
    """The settings object. Raises ConfigurationError that names each wrong flag."""
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        lines = [_complaint(settings_class, problem) for problem in error.errors(include_url=False)]
        raise ConfigurationError("\nerror: ".join(dict.fromkeys(lines))) from None


def _complaint(settings_class: type[Settings], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    flag = "--" + location[0].replace("_", "-")
    if problem["type"] == "missing":
        return f"{flag} is required: {settings_class.model_fields[location[0]].description}"
    if problem["type"] == "extra_forbidden":
        return f"{location[0]} is not a known setting{closest(location[0], list(settings_class.model_fields))}"
    return f"{flag}: {message[0].lower()}{message[1:]} (got {public_value(problem['input'])!r})"


def closest(given: str, known: list[str]) -> str:
    """A question that names the known word most like the given one; empty if none is."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
