"""Where a fine-tuning's first weights come from, found by the driver and kept in the run's folder for its workers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings
from raygan.runtime import storage
from raygan.runtime.runs import RunRecord
from raygan.training.inherit import Inheritance
from raygan.training.settings import TrainSettings

#: Folder of a run with the weights it began with.
BEGUN_FROM = "begun_from"

#: In the order in which they are written: the description marks the folder as complete.
_FILES = ("training.safetensors", "training.json", "generator.safetensors", "generator.json")


def keep_source(settings: TrainSettings, networks: NetworkSettings, run: RunRecord) -> str | None:
    """Copy the files that `begin_from` names into the run's folder, unless a run that is resumed has them.

    Returns:
        What is taken from where, in words; None if nothing, or if an earlier session has done it.

    Raises:
        ConfigurationError: there is no such model, or its networks are too different from the run's.
        RayganError: files are damaged, or MLflow or the storage doesn't answer.
    """
    if settings.begin_from is None:
        return None
    kept = storage.join(run.folder, BEGUN_FROM)
    if run.resumed and storage.is_file(storage.join(kept, _FILES[-1])):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        name, folder = _find(settings, Path(scratch))
        said = _check(folder, networks, settings)
        storage.delete(kept)  # left by a command that ended before its run began, perhaps from another source
        for file in _FILES:
            if (folder / file).exists():
                storage.write_bytes(storage.join(kept, file), (folder / file).read_bytes())
    return f"begins with {name}: {said}"


def _check(folder: Path, networks: NetworkSettings, settings: TrainSettings) -> str:
    found = Inheritance.of(folder, networks)
    found.check_frozen(networks, settings.freeze_critic)
    return found.account(networks)


def _find(settings: TrainSettings, scratch: Path) -> tuple[str, Path]:
    """The source's name, and its files on this machine."""
    given = str(settings.begin_from)
    if not given.startswith(tracking.MODELS):
        run = storage.join(settings.storage, "runs", given)
        checkpoints = storage.list_folders(run, "checkpoint_*") if "/" not in given else []
        for address in [given, *checkpoints[::-1]]:
            wanted = _FILES if address in checkpoints else _FILES[-1:]  # a full disk leaves parts of a checkpoint
            if all(storage.is_file(storage.join(address, file)) for file in wanted):
                return storage.public(address), Path(storage.local_folder(storage.absolute(address)))
    client = tracking.connect(settings)
    model = tracking.find_model(client, given)
    if model is None:
        raise ConfigurationError(
            f"--begin-from: {given!r} is neither a registered model ({tracking.NAMES}), a run with a checkpoint, nor "
            f"a folder with {_FILES[-1]}"
        )
    return f"{model.name}/{model.version}", tracking.download_model(client, model, scratch)
