"""Images and what networks say about them, computed by Ray tasks.

A task takes at most 128 images, which keeps all cores of the cluster busy. The features of real photos are kept in
``<storage>/features``, under the data set's fingerprint and the network's digest, for later reports.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raygan.addresses import slug
from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.evaluation.candidates import Candidate, Source
from raygan.evaluation.settings import EvaluateSettings
from raygan.metrics.animals import animal_mass, knows
from raygan.models.googlenet import Classifier, load_classifier
from raygan.models.registry import INCEPTION, SECOND_FEATURES
from raygan.models.weights import digest_of
from raygan.runtime import capacity, cluster, storage
from raygan.sampling.generators import ALL
from raygan.tracking.networks import GOOGLENET, feature_network, load_network, registered_classifier

#: Images of one task.
_TASK = 128


@dataclass(frozen=True)
class Networks:
    """The networks that images go through.

    Attributes:
        features: what `load_network` takes, by the network's name in metrics.
        dimensions: of the features of all networks together.
        classifier: address of the classifier's folder, or None.
    """

    features: Mapping[str, str]
    dimensions: int
    classifier: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classifier's labels; empty without a classifier."""
        return classifier_at(self.classifier).labels if self.classifier else ()


@dataclass(frozen=True)
class ImageSet:
    """Images of a label, and the networks' outputs for them.

    Attributes:
        pixels: uint8 (n, 3, S, S).
        features: float32 (n, d) by network.
        mass: animal mass (n,) by `SECOND_FEATURES`, 0 to 1; None for real photos to compare with, and for labels that
            ImageNet doesn't have.
        probabilities: the classifier's (n, labels), 0 to 1; None for real photos, and without a classifier.
    """

    pixels: Tensor
    features: Mapping[str, Tensor]
    mass: Tensor | None = None
    probabilities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at some indices."""
        return ImageSet(
            pixels=self.pixels[indices],
            features={name: vectors[indices] for name, vectors in self.features.items()},
            mass=None if self.mass is None else self.mass[indices],
            probabilities=None if self.probabilities is None else self.probabilities[indices],
        )

    def without_pixels(self) -> ImageSet:
        """The same set without pixels, for tasks that don't need them."""
        return replace(self, pixels=torch.empty(len(self), 0))


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one; it lacks what any of them lacks."""
    masses = [one.mass for one in sets if one.mass is not None]
    probabilities = [one.probabilities for one in sets if one.probabilities is not None]
    return ImageSet(
        pixels=torch.cat([one.pixels for one in sets]),
        features={name: torch.cat([one.features[name] for one in sets]) for name in sets[0].features},
        mass=torch.cat(masses) if len(masses) == len(sets) else None,
        probabilities=torch.cat(probabilities) if len(probabilities) == len(sets) else None,
    )


def find_networks(settings: EvaluateSettings) -> Networks:
    """The feature networks and the classifier that the settings name.

    Raises:
        ConfigurationError: one of them can't be loaded, or two have the same name.
    """
    folder = storage.absolute(settings.classifier) if settings.classifier else registered_classifier(settings)
    if folder is not None:
        classifier_at(folder)
    features: dict[str, str] = {}
    dimensions: dict[str, int] = {}
    for name in settings.network:
        if name == GOOGLENET and settings.classifier:
            name = settings.classifier
        elif name == INCEPTION and settings.inception_weights:
            name = f"{INCEPTION}:{storage.absolute(settings.inception_weights)}"
        address = feature_network(settings, name, "--network")
        network = load_network(address)
        title, dimensions[network.name] = network.name, network.dim
        if features.setdefault(title, address) != address:
            raise ConfigurationError(f"--network: two of the networks are called {title}: rename one's folder or file")
    return Networks(features, sum(dimensions.values()), folder)


@functools.lru_cache(maxsize=1)
def classifier_at(folder: str) -> Classifier:
    """The classifier in a folder, kept for the process's life."""
    return load_classifier(storage.local_folder(folder))


def real_photos(data: DataSet, label: str, most: int, networks: Networks, storage_folder: str) -> ImageSet:
    """Training photos of a label with their features, which are computed unless the storage has them.

    Args:
        data: the shards.
        label: one of the shards' labels, or "all" for every label.
        most: photos at most, spread evenly over the shards.
        networks: for the features.
        storage_folder: features are kept in its ``features``.
    """
    found = open_photos(data, "train", None if label == ALL else label)
    if not len(found):
        raise RayganError(f"--data: {data.address} has no training photo of {label} to compare with")
    pixels = torch.from_numpy(found.pixels(found.spread(most)))
    which = f"{data.manifest.fingerprint[:16]}-{slug(label)}-{len(pixels)}"

    def kept(network: str) -> Tensor:
        address = storage.join(storage_folder, "features", f"{which}-{network_digest(network)}.safetensors")
        return _kept_features(pixels, network, address, label)

    return ImageSet(pixels, {name: kept(network) for name, network in networks.features.items()})


def _kept_features(pixels: Tensor, network: str, address: str, label: str) -> Tensor:
    """Features (n, d) from a file in storage. If it is missing or damaged, they are computed and written to it."""
    try:
        kept: Tensor = load(storage.read_bytes(address))["features"]
        if len(kept) == len(pixels):
            return kept
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    features = ray.remote(_features).options(num_gpus=capacity.gpu_share())
    parts = [features.remote(part, network) for part in pixels.split(_TASK)]
    cluster.wait_for(parts, f"features of real photos of {label}", leave=True)
    found = torch.cat(cluster.fetch(parts))
    storage.write_bytes(address, save({"features": found}))
    return found


def network_digest(network: str) -> str:
    """Name and input size of a feature network, with the first digits of its weights' SHA-256."""
    features = load_network(network)
    return f"{features.name}-{features.size}-{digest_of(features.net)[:12]}"


def draw_samples(
    candidates: Sequence[Candidate], counts: Mapping[str, int], networks: Networks, seed: int
) -> dict[tuple[str, str], ImageSet]:
    """Samples of every candidate for each of its labels.

    Args:
        candidates: what to draw from.
        counts: images of each label.
        networks: what the images go through.
        seed: of the samples.

    Returns:
        The samples by the candidate's name and the label.
    """
    tasks = {
        (candidate.name, label): _start_drawing(source, label, counts[label], networks, seed)
        for candidate in candidates
        for label, source in candidate.sources.items()
    }
    cluster.wait_for([task for parts in tasks.values() for task in parts], "drawing samples", leave=True)
    return {key: joined(cluster.fetch(parts)) for key, parts in tasks.items()}


def _start_drawing(source: Source, label: str, count: int, networks: Networks, seed: int) -> list[ray.ObjectRef]:
    held = ray.put(source)
    draw = ray.remote(_draw).options(num_gpus=capacity.gpu_share())
    return [
        draw.remote(held, label, min(_TASK, count - first), seed, first, networks) for first in range(0, count, _TASK)
    ]


def _draw(source: Source, label: str, count: int, seed: int, first: int, networks: Networks) -> ImageSet:
    torch.set_num_threads(1)  # tasks run on all cores: more threads would get in each other's way
    pixels, device = source.sample(label, count, seed, first), capacity.own_device()
    return ImageSet(
        pixels=pixels,
        features={name: load_network(network)(pixels) for name, network in networks.features.items()},
        mass=animal_mass(pixels, label, SECOND_FEATURES, device) if knows(label) else None,
        probabilities=_probabilities(networks.classifier, pixels, device) if networks.classifier else None,
    )


def _probabilities(classifier: str, pixels: Tensor, device: torch.device) -> Tensor:
    return classifier_at(classifier).to(device).probabilities(pixels.to(device)).cpu()


def _features(pixels: Tensor, network: str) -> Tensor:
    torch.set_num_threads(1)
    return load_network(network)(pixels)
