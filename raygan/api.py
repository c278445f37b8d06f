"""The API for notebooks: prepare photos, train a generator, draw samples, classify images.

Keyword arguments are the jobs' settings, named like the flags: ``--batch-size 64`` is ``batch_size=64``, and `preset`
and `config` work as on the command line. `raygan.train`, for example, is `train` of this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raygan.cli import configure_ray
from raygan.errors import ConfigurationError as ConfigurationError
from raygan.errors import RayganError as RayganError
from raygan.errors import some
from raygan.settings import resolve

if TYPE_CHECKING:
    from raygan.models.googlenet import Classifier
    from raygan.sampling.generators import NamedGenerator
    from raygan.training.train import TrainResult

#: uint8 images (n, S, S, 3), RGB.
Images = npt.NDArray[np.uint8]

#: float32 latents (n, z_dim).
Latents = npt.NDArray[np.float32]


def prepare(**settings: Any) -> dict[str, Any]:
    """Clean folders of photos and write them as training shards, as `raygan prepare` does.

    Args:
        settings: the job's flags, such as ``input=["photos"], output="shards", image_size=64``.

    Returns:
        The report: counts of kept and rejected photos and more, as in report.json.

    Raises:
        ConfigurationError: a setting is unknown or wrong.
        RayganError: photos, storage or cluster fail.
    """
    from raygan.data.settings import PrepareSettings

    configure_ray()
    chosen = resolve(PrepareSettings, settings)
    from raygan.data import prepare as data

    return data.prepare(chosen)


def train(**settings: Any) -> TrainResult:
    """Train a GAN on prepared shards and register the generator, as `raygan train` does.

    Args:
        settings: the job's flags, such as ``data="shards", preset="best-64", label="cat"``.

    Returns:
        MLflow run id, registered model, address of the checkpoint and final metrics.

    Raises:
        ConfigurationError: a setting is unknown or wrong.
        RayganError: shards, storage, MLflow or cluster fail, or the training diverged.
    """
    from raygan.training.settings import TrainSettings

    configure_ray()
    chosen = resolve(TrainSettings, settings)
    from raygan.training import train as training

    return training.train(chosen)


def load_generator(name: str | os.PathLike[str], **settings: Any) -> LoadedGenerator:
    """Load a generator from the registry or a folder.

    Args:
        name: a registered model (``NAME`` for the promoted version, ``NAME/VERSION`` or MLflow's ``models:/…``), or the
            path or URI of a folder with generator.json, such as a checkpoint.
        settings: `storage` and `tracking_uri`, as the jobs take them.

    Raises:
        ConfigurationError: there is no such generator, or a setting is wrong.
        RayganError: files are missing or damaged, or MLflow doesn't answer.
    """
    from raygan.runtime.settings import StorageSettings
    from raygan.sampling.generators import find_generators

    (found,) = find_generators(resolve(StorageSettings, settings), [os.fspath(name)], [])
    return LoadedGenerator(found)


def load_classifier(name: str | os.PathLike[str] = "raygan-classifier", **settings: Any) -> LoadedClassifier:
    """Load a classifier from the registry or a folder.

    Args:
        name: a registered model (``NAME`` for the promoted version, ``NAME/VERSION`` or MLflow's ``models:/…``), or the
            path or URI of a folder with classifier.json.
        settings: `storage` and `tracking_uri`, as the jobs take them.

    Raises:
        ConfigurationError: there is no such classifier, or a setting is wrong.
        RayganError: files are missing or damaged, or MLflow doesn't answer.
    """
    from raygan.models import googlenet
    from raygan.runtime import storage
    from raygan.runtime.settings import StorageSettings
    from raygan.tracking.networks import find_classifier

    folder = find_classifier(resolve(StorageSettings, settings), os.fspath(name))
    return LoadedClassifier(googlenet.load_classifier(storage.local_folder(folder)))


class LoadedGenerator:
    """A generator, ready to draw. Made by `load_generator`."""

    def __init__(self, named: NamedGenerator, device: str = "cpu"):
        from raygan.models.drawing import Drawing

        self._named, self._drawing = named, Drawing(named.generator, device)

    @property
    def name(self) -> str:
        """The registered name with its version, or the folder's name."""
        return self._named.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it can draw."""
        return self._named.labels

    @property
    def image_size(self) -> int:
        """Side of its images in px."""
        return self._named.generator.settings.image_size

    def to(self, device: str) -> LoadedGenerator:
        """The same generator on another device, such as "cuda"; the pixels may differ by a gray level there."""
        return LoadedGenerator(self._named, device)

    def sample(
        self,
        seeds: Iterable[int],
        labels: str | Sequence[str] | None = None,
        truncation: float = 1.0,
        *,
        label: str | None = None,
    ) -> Images:
        """Draw one image for each seed, the same that `raygan sample` and the service draw for that seed.

        Args:
            seeds: each names one image, from 0.
            labels: what to draw, one for all seeds or one for each; needed only if the generator has several.
            truncation: scales the latents, above 0 to 1; less is more typical and less varied.
            label: the same as `labels`, under the name that flags and requests have for one.

        Returns:
            uint8 images (n, S, S, 3), RGB.

        Raises:
            ConfigurationError: the truncation is out of range, or a label is missing or unknown.
        """
        return self.draw(_truncated(self.latents(seeds), truncation), labels, label=label)

    def interpolate(
        self,
        start: int,
        end: int,
        frames: int,
        labels: str | Sequence[str] | None = None,
        truncation: float = 1.0,
        *,
        label: str | None = None,
    ) -> Images:
        """Draw a walk from one seed's image to another's, along the arc between their latents.

        Args:
            start: seed of the first frame.
            end: seed of the last frame.
            frames: how many, at least 2.
            labels: as for `sample`, one for all frames or one for each.
            truncation: as for `sample`.
            label: as for `sample`.

        Returns:
            uint8 images (frames, S, S, 3), RGB, the same that the service draws.

        Raises:
            ConfigurationError: as `sample`, or there are too few frames.
        """
        import torch

        from raygan.models.latents import slerp

        if frames < 2:
            raise ConfigurationError(f"frames must be at least 2, not {frames}")
        first, last = (torch.from_numpy(self.latents([seed])).expand(frames, -1) for seed in (start, end))
        points = slerp(first, last, torch.linspace(0, 1, frames))
        return self.draw(_truncated(points.numpy(), truncation), labels, label=label)

    def save_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file, which runs without torch.

        Its inputs and outputs are those of `raygan.models.export`. `latents` gives its inputs for a seed.

        Args:
            path: of the file.

        Raises:
            ConfigurationError: the packages of the extra ``onnx`` are missing.
        """
        from raygan.models.export import save_generator_onnx

        save_generator_onnx(self._named.generator, Path(path), self.labels)

    def latents(self, seeds: Iterable[int]) -> Latents:
        """The latents of seeds: float32 (n, z_dim), standard normal."""
        from raygan.models.latents import latents_of

        z_dim = self._named.generator.settings.z_dim
        chosen = list(seeds)
        if not chosen:
            return np.empty((0, z_dim), np.float32)
        found: Latents = latents_of(chosen, z_dim).numpy()
        return found

    def directions(self, count: int) -> Latents:
        """The directions in which the images change most, by SeFa.

        ``draw(latents + 3 * directions[0])`` moves along the first. Look at the images to see what a direction changes.

        Args:
            count: how many, at most z_dim.

        Returns:
            float32 (count, z_dim), unit vectors, the most effective first.
        """
        from raygan.models.directions import directions

        found: Latents = directions(self._named.generator, count).numpy()
        return found

    def draw(self, latents: Latents, labels: str | Sequence[str] | None = None, *, label: str | None = None) -> Images:
        """Draw one image for each latent.

        Args:
            latents: float32 (n, z_dim).
            labels: as for `sample`, one for all latents or one for each.
            label: as for `sample`.

        Returns:
            uint8 images (n, S, S, 3), RGB.
        """
        import torch

        points = torch.from_numpy(np.ascontiguousarray(latents, np.float32))
        if labels is not None and label is not None:
            raise ConfigurationError("label and labels are the same: give one of them")
        given = label if labels is None else labels
        each = [given] * len(points) if given is None or isinstance(given, str) else list(given)
        if len(each) != len(points):
            raise ConfigurationError(f"{len(points)} images need one label or {len(points)}, not {len(each)}")
        only = self.labels[0] if len(self.labels) == 1 else None
        chosen = [one or only for one in each]
        for one in chosen:
            if one not in self.labels:
                raise ConfigurationError(f"label must be one of {some(self.labels)}, not {one!r}")
        known = self._named.generator.labels
        classes = [torch.tensor([known.index(str(one)) for one in chosen])] if known else []
        images: Images = self._drawing(points, *classes).numpy()
        return images


def _truncated(latents: Latents, truncation: float) -> Latents:
    if not 0 < truncation <= 1:
        raise ConfigurationError(f"truncation must be above 0 and at most 1, not {truncation:g}")
    return latents * np.float32(truncation)


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier, ready to judge images. Made by `load_classifier`."""

    _classifier: Classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the probabilities."""
        return self._classifier.labels

    def probabilities(self, images: Images) -> npt.NDArray[np.float32]:
        """The probability of each label for each image.

        Args:
            images: uint8 (n, S, S, 3), RGB; resized to the size that the classifier was trained at.

        Returns:
            float32 (n, labels); rows sum to 1.

        Raises:
            ConfigurationError: the images are of another type or shape.
        """
        import torch

        images = np.ascontiguousarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ConfigurationError(f"images must be uint8 (n, S, S, 3), not {images.dtype} {images.shape}")
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        found: npt.NDArray[np.float32] = self._classifier.probabilities(pixels).numpy()
        return found
