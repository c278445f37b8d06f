"""Looks: what networks say of images, computed in Ray tasks, and kept for the real photos.

A look at images is their pixels, their features in each feature network, their animal mass and a classifier's
verdict. Tasks take a few hundred images each, so that all cores of the cluster are busy. The features of real photos
are kept in ``<storage>/features`` under the data set's fingerprint and the network's digest, for all reports to come.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raygan.evaluation.candidates import Source
from raygan.metrics.animals import AnimalMass, animal_mass
from raygan.models.features import load_features
from raygan.models.googlenet import Classifier, load_classifier
from raygan.runtime import cluster, storage

#: Images that one task looks at.
_TASK = 128


@dataclass(frozen=True)
class Judges:
    """Who looks. networks: names for `load_features`. classifier: its folder, or None."""

    networks: tuple[str, ...]
    classifier: str | None = None


@dataclass(frozen=True)
class Look:
    """n images and what was said of them.

    pixels: uint8 (n, 3, S, S). features: float32 (n, d) by network. mass: animal mass (n,) of the images' label, or
    None where ImageNet doesn't know it. verdicts: probabilities (n, labels), or None without a classifier.
    """

    pixels: Tensor
    features: Mapping[str, Tensor]
    mass: Tensor | None
    verdicts: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)


def joined(looks: Sequence[Look]) -> Look:
    """Several looks as one; what one of them lacks is lacking."""
    masses = [look.mass for look in looks if look.mass is not None]
    verdicts = [look.verdicts for look in looks if look.verdicts is not None]
    return Look(
        pixels=torch.cat([look.pixels for look in looks]),
        features={name: torch.cat([look.features[name] for look in looks]) for name in looks[0].features},
        mass=torch.cat(masses) if len(masses) == len(looks) else None,
        verdicts=torch.cat(verdicts) if len(verdicts) == len(looks) else None,
    )


def start_looking(source: Source, label: str, count: int, seed: int, judges: Judges) -> list[ray.ObjectRef]:
    """Start tasks that draw `count` images of a label and look at them; their looks, in order."""
    held = ray.put(source)
    look = ray.remote(_look)
    return [
        look.remote(held, label, min(_TASK, count - first), seed, first, judges) for first in range(0, count, _TASK)
    ]


def real_features(photos: Tensor, network: str, storage_folder: str, fingerprint: str, label: str) -> Tensor:
    """Features (n, d) of a label's real photos, from storage if they are there."""
    address = storage.join(
        storage_folder, "features", f"{fingerprint[:16]}-{label}-{len(photos)}-{network_digest(network)}.safetensors"
    )
    try:
        kept: Tensor = load(storage.read_bytes(address))["features"]
        if len(kept) == len(photos):
            return kept
    except (FileNotFoundError, SafetensorError, KeyError):
        pass  # not there, or cut short: computed and written anew
    features = ray.remote(_features)
    parts = [features.remote(part, network) for part in photos.split(_TASK)]
    cluster.wait_for(parts, f"features of real photos of {label}", leave=True)
    found = torch.cat(cluster.fetch(parts))
    storage.write_bytes(address, save({"features": found}))
    return found


def network_digest(network: str) -> str:
    """Name and first digits of the SHA-256 of a feature network's weights."""
    features = load_features(network)
    digest = hashlib.sha256()
    for value in features.net.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return f"{features.name}-{features.size}-{digest.hexdigest()[:12]}"


def _look(source: Source, label: str, count: int, seed: int, first: int, judges: Judges) -> Look:
    _one_thread()
    pixels = source.sample(label, count, seed, first)
    return Look(
        pixels=pixels,
        features={name: load_features(name)(pixels) for name in judges.networks},
        mass=animal_mass().per_image(pixels, label) if AnimalMass.knows(label) else None,
        verdicts=classifier_at(judges.classifier).probabilities(pixels) if judges.classifier else None,
    )


def _features(pixels: Tensor, network: str) -> Tensor:
    _one_thread()
    return load_features(network)(pixels)


def _one_thread() -> None:
    """Tasks run beside each other on all cores: more threads would only get in each other's way."""
    torch.set_num_threads(1)


@functools.lru_cache(maxsize=1)
def classifier_at(folder: str) -> Classifier:
    """The classifier of a folder, kept for the process's life."""
    return load_classifier(folder)
