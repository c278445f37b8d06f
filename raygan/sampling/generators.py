"""Find generators by name, folder or label, and draw images from them.

A generator is named as users name it: ``raygan-generator-cat`` (the version under the serving alias),
``raygan-generator-cat/3`` (that version), or a folder with ``generator.json``, such as a checkpoint. The driver loads
it once; tasks anywhere draw from it. Image i depends only on the generator, the seed and i, however the work is split;
with seed 0 it is the image that the service gives for seed i.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from raygan import tracking
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError, some
from raygan.models.gan import Generator, load_generator
from raygan.models.latents import images_of, latents_of
from raygan.runtime import capacity, storage
from raygan.runtime.settings import StorageSettings

#: The label of a generator trained on all labels together.
ALL = "all"


@dataclass(frozen=True)
class NamedGenerator:
    """A generator with its name and labels.

    Attributes:
        name: for tables and charts.
        generator: on the CPU, in evaluation mode.
        labels: that it draws.
        about: what its training recorded about it.
    """

    name: str
    generator: Generator
    labels: tuple[str, ...]
    about: dict[str, Any]

    def sample(self, label: str, count: int, seed: int, first: int = 0) -> Tensor:
        """Draw images of one label: numbers `first` to `first + count - 1` of the seed.

        Returns:
            uint8 (count, 3, S, S).
        """
        # In the service, consecutive seeds are consecutive images: sets of different seeds must not overlap.
        start = (seed << 32) + first
        latents = latents_of(range(start, start + count), self.generator.settings.z_dim)
        return self.draw(label, latents)

    def draw(self, label: str, latents: Tensor) -> Tensor:
        """Draw one image of a label per latent (n, z_dim): uint8 (n, 3, S, S)."""
        known = self.generator.labels
        device = capacity.own_device()
        classes = torch.full((len(latents),), known.index(label), device=device) if known else None
        return images_of(self.generator.to(device), latents.to(device), classes).cpu()


def find_generators(settings: StorageSettings, named: Sequence[str], labels: Sequence[str]) -> list[NamedGenerator]:
    """The named generators, or if none is named, the champions of the labels.

    Args:
        settings: where models are registered.
        named: registered models or folders.
        labels: whose champions to take. A champion of several labels is listed once, with those labels; a label
            without a champion is left out.

    Returns:
        Generators with distinct names.

    Raises:
        ConfigurationError: a name is unknown or given twice.
        RayganError: files are missing or damaged.
    """
    if named:
        return _distinct([_load(name) if is_folder(name) else _registered(settings, name) for name in named], named)
    champions = tracking.serving_generators(tracking.connect(settings))
    draws: dict[tracking.RegisteredModel, list[str]] = {}
    for label in labels:
        if label in champions:
            draws.setdefault(champions[label], []).append(label)
    return [replace(_download(settings, model), labels=tuple(own)) for model, own in draws.items()]


def is_folder(name: str, kind: Literal["generator", "classifier"] = "generator") -> bool:
    """Whether a name is the folder of a model of that kind."""
    return not name.startswith(tracking.MODELS) and storage.is_file(storage.join(name, f"{kind}.json"))


def matching_generators(settings: StorageSettings, named: Sequence[str], data: DataSet) -> list[NamedGenerator]:
    """`find_generators` whose images can be compared with the shards' photos: all their labels, at their size.

    Warns about generators trained on other shards.

    Raises:
        RayganError: none is found, files are damaged, or the generators don't fit the shards.
    """
    found = find_generators(settings, named, data.manifest.classes)
    check_labels(found, data)
    check_size(found, data)
    check_drawn(found, data.manifest.classes)
    for one in found:
        if one.about.get("fingerprint") != data.manifest.fingerprint:
            print(
                f"{one.name} was trained on other shards than {data.address}, or doesn't say which: it may have "
                f"learned from photos held out for validation here",
                file=sys.stderr,
            )
    return found


def check_drawn(found: Sequence[NamedGenerator], labels: Sequence[str]) -> None:
    """Raise RayganError if no generator draws one of the labels."""
    for label in labels:
        if not any(label in one.labels for one in found):
            raise RayganError(
                f"no generator draws {label}: train one with `python jobs/train.py --label {shlex.quote(label)}`, "
                f"or name one with --model (a registered model or a folder)"
            )


def check_labels(found: Sequence[NamedGenerator], data: DataSet) -> None:
    """Raise RayganError if a generator draws a label that the shards don't have."""
    classes = data.manifest.classes
    for one in found:
        strange = [label for label in one.labels if label not in (*classes, ALL)]
        if strange:
            raise RayganError(
                f"--model: {one.name} draws {some(strange)}, but {data.address} has only {some(classes)}: "
                f"give shards with that label, or another generator"
            )


def check_size(found: Sequence[NamedGenerator], data: DataSet) -> None:
    """Raise ConfigurationError if a generator draws images of another size than the shards'."""
    for one in found:
        size, held = one.generator.settings.image_size, data.manifest.image_size
        if size != held:
            raise ConfigurationError(
                f"--model: {one.name} draws {size} px images, but {data.address} holds {held} px ones: "
                f"give shards of {size} px"
            )


def _distinct(found: Sequence[NamedGenerator], named: Sequence[str]) -> list[NamedGenerator]:
    """The generators, with those that share a name renamed to what the user typed."""
    times = Counter(one.name for one in found)
    distinct = [
        replace(one, name=typed) if times[one.name] > 1 else one for one, typed in zip(found, named, strict=True)
    ]
    again = [name for name, count in Counter(one.name for one in distinct).items() if count > 1]
    if again:
        raise ConfigurationError(f"--model: {again[0]} is given twice")
    return distinct


def _load(address: str) -> NamedGenerator:
    address = storage.absolute(address)  # "." has no name
    name = storage.name(address)
    if name == "generator":
        name = storage.name(storage.parent(address))
    with storage.files_of(storage.checkpoint_at(address)) as folder:
        return _named(name, *load_generator(folder))


def _registered(settings: StorageSettings, name: str) -> NamedGenerator:
    client = tracking.connect(settings)
    model = tracking.find_model(client, name)
    if model is None:
        raise ConfigurationError(
            f"--model: {name!r} is neither a folder with generator.json nor a registered model ({tracking.NAMES})"
        )
    return _download(settings, model)


def _download(settings: StorageSettings, model: tracking.RegisteredModel) -> NamedGenerator:
    with tempfile.TemporaryDirectory() as scratch:
        folder = tracking.download_model(tracking.connect(settings), model, Path(scratch))
        generator, about = load_generator(folder)
    return _named(f"{model.name}/{model.version}", generator, about)


def _named(name: str, generator: Generator, about: dict[str, Any]) -> NamedGenerator:
    labels = generator.labels or (str(about.get("label", ALL)),)
    return NamedGenerator(name, generator, labels, about)
