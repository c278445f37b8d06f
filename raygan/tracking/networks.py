"""The registered classifier and the feature networks by name, for jobs that judge images."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raygan import tracking
from raygan.addresses import parent
from raygan.errors import ConfigurationError
from raygan.models.registry import DEFAULT_FEATURES, FEATURES, SECOND_FEATURES
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings

if TYPE_CHECKING:
    from raygan.models.features import Features

#: The name of the registered classifier where a feature network is named.
GOOGLENET = "googlenet"

#: Folder in the storage of the registered classifier's versions.
_CLASSIFIERS = "classifiers"

#: A classifier folder's files, in the order in which they are written: the JSON file marks the folder as complete.
_FILES = ("classifier.safetensors", "classifier.json")


def registered_classifier(settings: StorageSettings, name: str | None = None) -> str | None:
    """The address of a folder with a registered classifier, or None if it isn't registered.

    The classifier is downloaded into the storage once for each version, and tasks on other nodes load it from there.

    Args:
        settings: the storage, and where MLflow is.
        name: ``NAME`` for the version under the serving alias, or ``NAME/VERSION``; None for the usual classifier.
    """
    client = tracking.connect(settings)
    model = tracking.find_model(client, name or tracking.CLASSIFIER_NAME)
    if model is None:
        return None
    # Versions begin at 1 in every registry; run ids are unique everywhere.
    folder = storage.join(settings.storage, _CLASSIFIERS, f"v{model.version}-{str(model.run_id)[:8]}")
    if not storage.is_file(storage.join(folder, _FILES[-1])):
        with tempfile.TemporaryDirectory() as scratch:
            fetched = tracking.download_model(client, model, Path(scratch))
            for file in _FILES:
                storage.write_bytes(storage.join(folder, file), (fetched / file).read_bytes())
    return folder


def find_classifier(settings: StorageSettings, name: str) -> str:
    """The address of a folder with a classifier, which the name is itself or has in the registry.

    Raises:
        ConfigurationError: there is no such classifier.
    """
    if not name.startswith(tracking.MODELS) and storage.is_file(storage.join(name, _FILES[-1])):
        return storage.absolute(name)
    folder = registered_classifier(settings, name)
    if folder is None:
        raise ConfigurationError(
            f"{name!r} is neither a folder with {_FILES[-1]} nor a registered model ({tracking.NAMES})"
        )
    return folder


def feature_network(settings: StorageSettings, name: str, flag: str, before: str | None = None) -> str:
    """What `load_network` takes for a feature network as users name it: ``googlenet`` is the registered classifier.

    Args:
        settings: the storage, and where MLflow is.
        name: of the network.
        flag: that names it, for messages.
        before: what a run that is resumed has used. A version of the classifier stays, whatever the champion is now.

    Raises:
        ConfigurationError: the network can't be loaded. It names the flag, before any worker asks for the network.
    """
    if name == GOOGLENET and before and parent(before) == storage.join(settings.storage, _CLASSIFIERS):
        name = before
    if name == GOOGLENET:
        folder = registered_classifier(settings)
        if folder is None:
            raise ConfigurationError(
                f"{flag}: no classifier is registered: train one with `python jobs/classify.py`, or give its folder"
            )
        name = folder
    if name in (DEFAULT_FEATURES, SECOND_FEATURES):  # come with the installation
        return name
    architecture, colon, file = name.rpartition(":")
    if name not in FEATURES.names() and os.path.exists(storage.absolute(file)):
        name = architecture + colon + storage.absolute(file)  # workers have other working directories
    try:
        load_network(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{flag}: {error}") from None
    return name


def load_network(address: str) -> Features:
    """A feature network as `feature_network` names it, on the GPU that this process has reserved, if any.

    Files on object storage are copied to this machine's disk.
    """
    from raygan.models.features import load_features  # torch takes seconds to import; most drivers only need names
    from raygan.runtime import capacity

    return load_features(storage.local_folder(address)).to(capacity.own_device())
