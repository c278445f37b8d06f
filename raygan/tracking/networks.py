"""The registered classifier, by name and as a feature network, for jobs that judge with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.models.features import DEFAULT_NETWORK, load_features
from raygan.runtime import storage
from raygan.runtime.settings import StorageSettings

#: What users call the registered classifier where they name a feature network.
GOOGLENET = "googlenet"


def registered_classifier(settings: StorageSettings) -> str | None:
    """The address of a folder with the registered classifier under the serving alias, or None if there is none.

    It is fetched once into the storage, under its run and version: tasks on other nodes load it from there.
    """
    client = tracking.connect(settings)
    model = tracking.serving_classifier(client)
    if model is None:
        return None
    # Versions begin at 1 in every registry; runs' ids are unlike each other everywhere.
    folder = storage.join(settings.storage, "classifiers", f"v{model.version}-{str(model.run_id)[:8]}")
    if not storage.is_file(storage.join(folder, "classifier.json")):
        with tempfile.TemporaryDirectory() as scratch:
            fetched = tracking.download_model(client, model, Path(scratch))
            for name in ("classifier.safetensors", "classifier.json"):  # the JSON last: it makes the folder whole
                storage.write_bytes(storage.join(folder, name), (fetched / name).read_bytes())
    return folder


def feature_network(settings: StorageSettings, name: str, flag: str) -> str:
    """What `load_features` takes, of what a user calls a feature network: ``googlenet`` is the registered classifier.

    Raises ConfigurationError that names the flag if the network can't be had: better now than when workers ask.
    """
    if name == GOOGLENET:
        folder = registered_classifier(settings)
        if folder is None:
            raise ConfigurationError(
                f"{flag}: no classifier is registered: train one with `python jobs/classify.py`, or give its folder"
            )
        name = folder
    if name == DEFAULT_NETWORK:  # comes with the installation
        return name
    if os.path.exists(name):
        name = os.path.abspath(name)  # workers may stand elsewhere
    try:
        load_features(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{flag}: {error}") from None
    return name
