"""A long job's place in storage, and the record that lets the same command resume it.

A run lives in ``<storage>/runs/<name>``. Its ``run.json`` holds the MLflow run's id and the settings and shards that
the run began with. A command with other settings or shards is refused.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from raygan.addresses import public_value
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings

if TYPE_CHECKING:
    import ray.train

#: Longest name of a run, in characters.
_LONGEST = 120


class RunRecord:
    """A run's place in storage and its ``run.json``."""

    def __init__(self, name: str, folder: str, values: dict[str, Any], *, resumed: bool):
        self.name, self.folder, self.resumed = name, folder, resumed
        self._values, self._is_there = values, resumed

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run of a resumed run; None for a new run."""
        return self._values.get("mlflow_run_id")

    @property
    def publications(self) -> int:
        """How often the run's numbers have been published, over all sessions: a step for MLflow that only grows."""
        return int(self._values.get("publications", 0))

    @classmethod
    def open(
        cls,
        settings: StorageSettings,
        name: str,
        fingerprint: str,
        *,
        may_change: Set[str],
        allow_changes: bool | None = None,
        under: str = "runs",
        images: int | None = None,
        minutes: float | None = None,
        unfinished: bool = False,
        extension: int = 0,
    ) -> RunRecord:
        """The run of this name, new or resumed.

        A finished run is resumed only if more is asked for now: more images, more minutes, or `unfinished` work.

        Args:
            settings: of the job.
            name: the run's name, which becomes a folder.
            fingerprint: of the shards.
            may_change: settings that may differ from those the run began with.
            allow_changes: resume even if others differ; None if this kind of run can't.
            under: folder in the storage.
            images: images that the run will have seen at its end.
            minutes: time limit of the run; None for no limit.
            unfinished: a finished run still has work to do.
            extension: characters that the names of its own runs add to this one.

        Raises:
            ConfigurationError: the run is finished, or it began with other settings or shards.
        """
        most = _LONGEST - extension
        if not re.fullmatch(rf"(?!\.+$)[\w.-]{{1,{most}}}", name, re.ASCII):  # Ray encodes the name in ASCII
            raise ConfigurationError(
                f"--name: {name!r} must have 1 to {most} letters (a to z, A to Z), digits, '.', '_' and '-', and not "
                f"only dots"
            )
        folder = storage.join(settings.storage, under, name)
        now: dict[str, Any] = {"settings": recorded(settings), "fingerprint": fingerprint}
        before = storage.read_json(storage.join(folder, "run.json"))
        if before is None:
            return cls(name, folder, now, resumed=False)
        ended = images is None or before.get("images", 0) >= images or before.get("minutes", 0) >= (minutes or math.inf)
        if before.get("state") == "finished" and ended and not unfinished:
            further = "" if images is None else "train it further with more --epochs, --kimg or --minutes, or "
            raise ConfigurationError(f"--name: {name} is finished: {further}give another --name")
        differences = _differences(before, now, may_change, type(settings))
        if differences and not allow_changes:
            advice = "" if allow_changes is None else ", or resume it anyway with --allow-changes"
            raise ConfigurationError(
                f"--name: {name} started with other settings or shards ({'; '.join(differences)}): "
                f"give another --name{advice}"
            )
        print(f"resuming {name}")
        workers = before.get("settings", {}).get("num_workers")
        if workers != now["settings"].get("num_workers"):
            print(f"it had --num-workers {workers} before: its numbers may differ from those of an uninterrupted run")
        return cls(name, folder, {**before, **now}, resumed=True)

    def save(self, **changes: str | float) -> None:
        """Write changed values to ``run.json``. Raises RayganError if another job has begun the run meanwhile."""
        path = storage.join(self.folder, "run.json")
        if not self._is_there and storage.is_file(path):
            raise RayganError(f"--name: another job has just begun {self.name}: wait for it, or give another --name")
        self._values |= changes
        storage.write_json(path, self._values)
        self._is_there = True


def is_finished(settings: StorageSettings, name: str) -> bool:
    """Whether a training of this name is finished."""
    return _record(settings, name, "runs").get("state") == "finished"


def begun_with(settings: StorageSettings, name: str | None, under: str = "runs") -> dict[str, Any]:
    """The settings that a run of this name began with; empty for a new run."""
    return dict(_record(settings, name, under).get("settings", {})) if name else {}


def _record(settings: StorageSettings, name: str, under: str) -> dict[str, Any]:
    """The record of a run, or of a search; empty for a new one."""
    return storage.read_json(storage.join(settings.storage, under, name, "run.json")) or {}


def recorded(settings: StorageSettings) -> dict[str, Any]:
    """The settings without passwords, fit to be shown to everyone."""
    values = settings.model_dump(mode="json", exclude={"tracking_uri"})
    return {name: public_value(value) for name, value in values.items()}


def _differences(
    before: dict[str, Any], now: dict[str, Any], may_change: Set[str], known: type[StorageSettings]
) -> list[str]:
    # A run of an older version lacks newer settings; it behaved as their defaults do.
    defaults = {name: field.get_default(call_default_factory=True) for name, field in known.model_fields.items()}
    old, new = {**defaults, **before.get("settings", {})}, now["settings"]
    changed = [
        f"{key} was {old.get(key)}, now {value}"
        for key, value in new.items()
        if key not in may_change and old.get(key) != value
    ]
    if before.get("fingerprint") != now["fingerprint"]:
        changed.append("the shards have changed since")
    return changed


def address_of(run_folder: str, checkpoint: ray.train.Checkpoint) -> str:
    """A checkpoint's address. Ray leaves the scheme out of its path."""
    return storage.join(run_folder, posixpath.basename(checkpoint.path))
