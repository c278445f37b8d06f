"""The only process of the service that talks to MLflow: which versions are champions, and their files.

Replicas get a model's files as bytes, so neither they nor the gateway import MLflow (seconds and 150 MB each), and a
registry outage doesn't affect what is already loaded.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from raygan.errors import RayganError
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.settings import ServeSettings

log = logging.getLogger("raygan.serve")

#: Models whose files stay in memory for replicas that start.
_MAX_MODELS = 8

Files = dict[str, bytes]

#: Fetches a version's files; under Serve it asks the model store's deployment.
Fetch = Callable[[ModelVersion], Awaitable[Files]]


class ModelStore:
    """Champions and model files from MLflow. Its methods block; Serve runs them in threads."""

    def __init__(self, settings: ServeSettings):
        from raygan import tracking

        self._client = tracking.connect(settings)
        self._files: OrderedDict[ModelVersion, Files] = OrderedDict()
        self._lock = threading.Lock()
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

    def files(self, model: ModelVersion) -> Files:
        """A version's files by name. Raises RayganError if MLflow can't provide them."""
        with self._lock:
            if model not in self._files:
                self._files[model] = self._download(model)
                while len(self._files) > _MAX_MODELS:
                    self._files.popitem(last=False)
            self._files.move_to_end(model)
            return self._files[model]

    def _download(self, model: ModelVersion) -> Files:
        from raygan import tracking

        with tempfile.TemporaryDirectory() as scratch:
            registered = tracking.RegisteredModel(model.name, model.version, None)
            folder = tracking.download_model(self._client, registered, Path(scratch))
            return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_files(files: Files, folder: Path) -> Path:
    """Write a model's files to a folder, as loaders expect them; returns the folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
