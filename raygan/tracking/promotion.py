"""Which version gets the serving alias, and why: each move is recorded with the version.

A version that gets the alias is tagged with the version that had it before (``raygan.replaced``), to which a rollback
returns, and in ``raygan.promoted`` with a line for each time that it got the alias, the latest last: when, after which
version, and why. A version that doesn't get it is tagged with the reason, too (``raygan.not_promoted``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raygan.errors import ConfigurationError, RayganError, first_line
from raygan.runtime.settings import PromoteSettings
from raygan.tracking.connection import connect
from raygan.tracking.models import MODELS, SERVING_ALIAS, RegisteredModel, download_model, find_model

T = TypeVar("T")

_PROMOTED, _REPLACED, _DECLINED = "raygan.promoted", "raygan.replaced", "raygan.not_promoted"

#: Longest tag that every registry's database keeps, in characters.
_TAG_LENGTH = 5000


@dataclass(frozen=True)
class Decision:
    """Whether a version gets the serving alias, and why.

    Attributes:
        promote: whether it does.
        reason: in words that begin after a colon.
        beaten: the champion's version when this was decided, empty if there was none; None if it makes no difference.
    """

    promote: bool
    reason: str
    beaten: str | None = None

    def plain(self) -> dict[str, Any]:
        """For a job's last line."""
        return {"promoted": self.promote, "reason": self.reason}


def beside_champion(
    client: MlflowClient, name: str, compare: Callable[[RegisteredModel, Path], T | Decision]
) -> T | Decision:
    """Compare with the champion; without a champion to beat, the model is promoted.

    Args:
        client: of MLflow.
        name: of the registered model.
        compare: decides, or loads what is needed to decide, given the champion and a folder with its files. If it
            fails, the alias stays.
    """
    try:
        champion = find_model(client, name)
        if champion is None:
            return Decision(True, "there was none before", beaten="")
        with tempfile.TemporaryDirectory() as scratch:
            return compare(champion, download_model(client, champion, Path(scratch)))
    except RayganError as error:  # the model is registered; only the comparison is missing
        return Decision(False, f"it could not be compared with the champion: {error}")


def carry_out(client: MlflowClient, model: RegisteredModel, decision: Decision) -> Decision:
    """Move the alias to a version or leave it, record the reason, and say so.

    A comparison takes minutes, in which another job or a person may promote another version: it stays.

    Returns:
        What was done in the end, and why.

    Raises:
        RayganError: the registry refuses.
    """
    if decision.promote and decision.beaten is not None:
        champion = find_model(client, model.name)
        if champion and champion.version not in (decision.beaten, model.version):
            meanwhile = f"version {champion.version} became the {SERVING_ALIAS} in the meantime"
            decision = Decision(False, f"{meanwhile}, and the two were not compared")
    try:
        if decision.promote:
            _move(client, model, decision.reason)
        else:
            client.set_model_version_tag(model.name, model.version, _DECLINED, _dated(decision.reason))
            print(
                f"{model.name}/{model.version} is not promoted: {decision.reason}; "
                f"`python jobs/promote.py --model {model.name}/{model.version}` promotes it anyway",
                flush=True,
            )
    except MlflowException as error:
        raise _refused(model.name, error) from None
    return decision


def promote(settings: PromoteSettings) -> None:
    """Move the alias of a registered model because a person says so.

    Raises:
        ConfigurationError: there is no such version, or no earlier champion is recorded.
        RayganError: the registry doesn't answer.
    """
    client = connect(settings)
    name, _, number = settings.model.removeprefix(MODELS).partition("/")
    if settings.rollback and number:
        raise ConfigurationError(
            f"--rollback: give --model {name}, without a version; without --rollback, {settings.model} is served"
        )
    try:
        if settings.rollback:
            _move(client, _predecessor(client, name), "rolled back by hand", back=True)
            return
        model = find_model(client, settings.model) if number else None
        if model is None:
            raise ConfigurationError(
                f"--model: {settings.model!r} is not a registered version: give NAME/VERSION, or NAME with --rollback"
            )
        _move(client, model, "by hand")
    except MlflowException as error:
        raise _refused(name, error) from None


def _predecessor(client: MlflowClient, name: str) -> RegisteredModel:
    champion = find_model(client, name)
    if champion is None:
        raise ConfigurationError(f"--model: {name!r} is not a registered model with a version under {SERVING_ALIAS!r}")
    before = client.get_model_version(name, champion.version).tags.get(_REPLACED)
    model = find_model(client, f"{name}/{before}") if before else None
    if model is None:
        raise ConfigurationError(
            f"--rollback: no version before {name}/{champion.version} is recorded: give --model NAME/VERSION"
        )
    return model


def _move(client: MlflowClient, model: RegisteredModel, reason: str, *, back: bool = False) -> None:
    before = find_model(client, model.name)
    if before is not None and before.version == model.version:
        print(f"{model.name}/{model.version} is the {SERVING_ALIAS} already", flush=True)
        return
    after = f", after version {before.version}" if before else ""
    earlier = client.get_model_version(model.name, model.version).tags.get(_PROMOTED, "").splitlines()
    lines = [*earlier, _dated(reason, after)]
    while len(lines) > 1 and len("\n".join(lines)) > _TAG_LENGTH:
        del lines[0]
    # The tags first: what is served has its reason, even if this process dies in between.
    client.set_model_version_tag(model.name, model.version, _PROMOTED, "\n".join(lines))
    if before is not None and not back:  # else rolling back twice would lead nowhere
        client.set_model_version_tag(model.name, model.version, _REPLACED, before.version)
    client.set_registered_model_alias(model.name, SERVING_ALIAS, model.version)
    print(f"{model.name}/{model.version} is the {SERVING_ALIAS} now{after}: {reason}", flush=True)


def _dated(reason: str, after: str = "") -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}{after}: {reason}"


def _refused(name: str, error: MlflowException) -> RayganError:
    return RayganError(f"MLflow did not move the alias of {name}: {first_line(error)}")
