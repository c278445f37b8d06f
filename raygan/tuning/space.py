"""Search spaces as users write them: ``generator_lr=1e-5..1e-3`` and ``z_dim=64,128``.

Free of torch and Ray: parses a space, checks that every value makes a valid training, and knows the baseline's point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raygan.errors import ConfigurationError
from raygan.settings import validate
from raygan.training.settings import TrainSettings

#: The settings that may be searched, with the baseline's values: those of the preset `wgan-gp-128`, but with raygan's
#: own EMA. They are the first trial of every search, for comparison.
BASELINE: dict[str, Any] = {
    "generator_lr": 0.00035,
    "critic_lr": 0.0001,
    "z_dim": 200,
    "penalty_weight": 10.0,
    "penalty_every": 1,
    "n_critic": 5,
    "width": 64,
    "batch_size": 128,
    "warmup_kimg": 0.0,
    "ema_kimg": 10.0,
    "augment": "none",
}


@dataclass(frozen=True)
class Axis:
    """A searched setting: log-uniform from `low` to `high`, or one of `choices`."""

    name: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()


def parse_space(texts: Sequence[str], base: TrainSettings) -> list[Axis]:
    """The axes of a space.

    Args:
        texts: such as ``z_dim=64,128``.
        base: settings of all trials; values are tried on them, so that no trial fails later.

    Raises:
        ConfigurationError: a text is malformed, or a value is impossible.
    """
    axes = [_axis(text) for text in texts]
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"--space: a setting is named twice among {', '.join(names)}")
    if not axes:
        raise ConfigurationError("--space: nothing to search")
    try_values(axes, base, lambda settings: None)
    return axes


def try_values(axes: Sequence[Axis], base: TrainSettings, attempt: Callable[[TrainSettings], object]) -> None:
    """Attempt something with each bound and choice, and with the baseline's values, since it is a trial of any search.

    Args:
        axes: of the space.
        base: settings of all trials.
        attempt: raises ConfigurationError for settings that can't be trained.

    Raises:
        ConfigurationError: it names the value that can't be.
    """
    for axis in axes:
        given = axis.choices or (axis.low, axis.high)
        for value in (*given, BASELINE[axis.name]):
            try:
                attempt(settings_of(base, {axis.name: value}))
            except ConfigurationError as error:
                whose = "" if value in given else ", as in the baseline, which is the first trial"
                raise ConfigurationError(f"--space: {axis.name} can't be {value}{whose}: {error}") from None


def baseline_point(axes: Sequence[Axis]) -> dict[str, Any]:
    """The baseline's values of the searched settings."""
    return {axis.name: BASELINE[axis.name] for axis in axes}


def settings_of(base: TrainSettings, point: dict[str, Any]) -> TrainSettings:
    """The training at a point of the space. Raises ConfigurationError if it is impossible."""
    changes = dict(point)
    if "augment" in changes:
        policies = changes["augment"]
        changes["augment"] = [] if policies == "none" else str(policies).split("+")
    values = {name: getattr(base, name) for name in TrainSettings.model_fields}
    return validate(TrainSettings, {**values, **changes})


def _axis(text: str) -> Axis:
    name, equals, values = (part.strip() for part in text.partition("="))
    name = name.replace("-", "_")
    if not equals or not values.strip(", "):
        raise ConfigurationError(f"--space: {text!r} must be NAME=LOW..HIGH or NAME=A,B,C")
    if name not in BASELINE:
        raise ConfigurationError(f"--space: {name} can't be searched; choose from {', '.join(BASELINE)}")
    if ".." in values:
        return _range(name, values)
    return Axis(name, choices=tuple(_value(name, value.strip()) for value in values.split(",") if value.strip()))


def _range(name: str, values: str) -> Axis:
    low, high = (_value(name, value) for value in values.split("..", 1))
    if not isinstance(BASELINE[name], float):
        example = f"{name}={BASELINE[name]},..."
        raise ConfigurationError(f"--space: {name} takes a list of values such as {example}, not a range")
    if not 0 < low < high:
        raise ConfigurationError(
            f"--space: {name}={values} is not a range: the low end must be above 0 and below the high end"
        )
    return Axis(name, low=low, high=high)


def _value(name: str, text: str) -> Any:
    kind = type(BASELINE[name])
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"--space: {name} can't be {text!r}") from None
