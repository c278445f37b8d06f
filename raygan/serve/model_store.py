"""The only process of the service that talks to MLflow: which versions are champions, and their files.

Replicas get a model's files as bytes, so neither they nor the gateway import MLflow (seconds and 150 MB each), and a
registry outage doesn't affect what is already loaded.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from raygan.errors import RayganError
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Bytes of files kept in memory for replicas that start.
_CACHED_BYTES = 2e9

#: Attempts to load a version that may die unfinished: if loading has killed replicas or rehearsals, it would again.
_MAX_UNFINISHED = 3

#: Seconds after which a load that never finished is forgotten.
_FORGET_SECONDS = 3600.0

Files = dict[str, bytes]

#: Fetches a version's files; under Serve it asks the model store's deployment.
Fetch = Callable[[ModelVersion], Awaitable[Files]]

#: Tells the model store that a replica has survived loading a version, or (False) has not tried.
Finish = Callable[[ModelVersion, bool], Awaitable[None]]


class ModelStore:
    """Champions and model files from MLflow. Its methods block; Serve runs them in threads."""

    def __init__(self, settings: ServeSettings):
        from raygan import tracking

        self.settings = settings
        self._client = tracking.connect(settings)
        self._files: OrderedDict[ModelVersion, Files] = OrderedDict()
        self._unfinished: dict[ModelVersion, list[float]] = {}
        self._finished: set[ModelVersion] = set()
        self._lock = threading.Lock()
        self._downloads: defaultdict[ModelVersion, threading.Lock] = defaultdict(threading.Lock)
        self._last: Champions | None = None
        self._proven = Champions()

    def champions(self) -> Champions:
        """The versions at the serving alias, as of MLflow's last answer, with the proven versions of their labels.

        Raises:
            RayganError: MLflow has never answered.
        """
        try:
            self._last = self._ask()
        except RayganError as error:
            if self._last is None:
                raise
            log.warning("MLflow does not answer, its last answer stands: %s", error)
        return replace(self._last, proven=self._proven_of(self._last))

    def confirm(self, champions: Champions) -> None:
        """Record versions as proven. This process outlives gateways, so a restarted gateway knows its stand-ins."""
        generators = {**self._proven.generators, **champions.generators}
        self._proven = Champions(generators, champions.classifier or self._proven.classifier)

    def _proven_of(self, current: Champions) -> Champions:
        """The proven versions, without labels that lost their alias."""
        generators = {k: model for k, model in self._proven.generators.items() if k in current.generators}
        return Champions(generators, self._proven.classifier if current.classifier else None)

    def _ask(self) -> Champions:
        from raygan import tracking

        generators = {
            label: ModelVersion(model.name, model.version)
            for label, model in tracking.serving_generators(self._client).items()
        }
        classifier = tracking.serving_classifier(self._client)
        return Champions(generators, ModelVersion(classifier.name, classifier.version) if classifier else None)

    def exists(self, model: ModelVersion) -> bool:
        """Whether the registry has a version. Raises RayganError if MLflow doesn't answer."""
        from raygan import tracking

        return model in self._files or tracking.find_model(self._client, f"{model.name}/{model.version}") is not None

    def files(self, model: ModelVersion) -> Files:
        """A version's files by name, for a replica that then loads them and says so with `finish`.

        Raises:
            RayganError: MLflow can't provide them, or loading them has failed several times.
        """
        with self._lock:
            download = self._downloads[model]
        with download:  # a version once, and other versions meanwhile
            files = self._files.get(model) or self._download(model)
            with self._lock:
                self._files[model] = files
                self._files.move_to_end(model)
                while len(self._files) > 1 and sum(map(size_of, self._files.values())) > _CACHED_BYTES:
                    self._files.popitem(last=False)
                if model not in self._finished:
                    self._begin(model)
        return files

    def finish(self, model: ModelVersion, tried: bool = True) -> None:
        """A replica has survived loading a version, whether or not it could use it, or it has not tried to load it."""
        with self._lock:
            if tried:
                self._finished.add(model)
                self._unfinished.pop(model, None)
            elif self._unfinished.get(model):
                self._unfinished[model].pop()

    def _begin(self, model: ModelVersion) -> None:
        now = time.monotonic()
        recent = [began for began in self._unfinished.get(model, []) if now - began < _FORGET_SECONDS]
        if len(recent) >= _MAX_UNFINISHED:
            raise RayganError(f"{model}: {len(recent)} attempts to load it have not ended; see the log")
        self._unfinished[model] = [*recent, now]

    def _download(self, model: ModelVersion) -> Files:
        from raygan import tracking

        with tempfile.TemporaryDirectory() as scratch:
            registered = tracking.RegisteredModel(model.name, model.version, None)
            limit = self.settings.max_model_megabytes
            folder = tracking.download_model(self._client, registered, Path(scratch), max_megabytes=limit)
            return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def size_of(files: Files) -> int:
    """Bytes of a version's files."""
    return sum(map(len, files.values()))


def write_files(files: Files, folder: Path) -> Path:
    """Write a model's files to a folder, as loaders expect them; returns the folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
