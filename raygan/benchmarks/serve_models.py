"""The generator and the classifier that every benchmarked server uses, and how a server without Ray runs them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raygan import tracking
from raygan.models.fuse import fast_classifier, fast_network
from raygan.models.gan import NetworkSettings, build_generator, load_generator, save_generator, to_uint8
from raygan.models.googlenet import build_googlenet, load_classifier, save_classifier
from raygan.models.hardware import computes_bf16
from raygan.models.latents import latents_of
from raygan.serve import encode
from raygan.serve.messages import Pixels
from raygan.serve.settings import ServeSettings

CPU = torch.device("cpu")


def make_models(folder: Path, image_size: int, width: int) -> None:
    """Register an untrained generator and classifier under `folder`: speed doesn't depend on the weights."""
    torch.manual_seed(0)
    settings = ServeSettings(storage=str(folder), tracking_uri=None)
    save_generator(folder / "generator", build_generator(NetworkSettings(image_size, 200, width)).eval(), {})
    labels = ("cat", "dog")
    save_classifier(
        folder / "classifier", build_googlenet(2, auxiliary=False), labels=labels, image_size=image_size, about={}
    )
    with tracking.start_run(settings, "benchmark", job="benchmark", params={}) as run:
        tracking.register_generator(run, folder / "generator", "cat", labels=["cat"], promote=True)
        tracking.register_classifier(run, folder / "classifier", labels, promote=True)


def promote_label(folder: Path, label: str) -> None:
    """Register the generator of `make_models` for another label, too, and promote it."""
    settings = ServeSettings(storage=str(folder), tracking_uri=None)
    with tracking.start_run(settings, label, job="benchmark", params={}) as run:
        tracking.register_generator(run, folder / "generator", label, labels=[label], promote=True)


def make_huge_model(folder: Path) -> None:
    """Promote, under the label "huge", a 20 kB file that claims to be a generator with 300,000-dimensional latents."""
    others = set(folder.rglob("generator.json"))
    promote_label(folder, "huge")
    for file in set(folder.rglob("generator.json")) - others:
        about = json.loads(file.read_text())
        about["networks"]["z_dim"] = 300_000
        file.write_text(json.dumps({**about, "padding": "x" * 20_000}))


class Pair:
    """Both models in one process."""

    def __init__(self, folder: Path, *, fast: bool):
        """Load the models.

        Args:
            folder: where `make_models` put them.
            fast: whether to fold norms, use channels last, and compute in bfloat16 where the hardware does.
        """
        self.generator = load_generator(folder / "generator")[0]
        self.classifier = load_classifier(folder / "classifier")
        self.network: Any = self.generator
        if fast:
            self.network = fast_network(self.generator, [self.latents(1, 0)], CPU)
            self.classifier = fast_classifier(self.classifier, CPU, bf16=computes_bf16(CPU))
        else:
            self.classifier.net.to(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def answer(self, latents: torch.Tensor) -> tuple[Pixels, np.ndarray]:
        """Images (n, S, S, 3) and probabilities (n, labels)."""
        images = to_uint8(self.network(latents))
        return images.permute(0, 2, 3, 1).contiguous().numpy(), self.classifier.probabilities(images).numpy()

    def latents(self, n: int, seed: int) -> torch.Tensor:
        """Latents (n, z_dim) of `n` consecutive seeds."""
        return latents_of(range(seed, seed + n), self.generator.settings.z_dim)


def picture(images: Pixels) -> bytes:
    """A PNG grid as Pillow writes it, at zlib's lowest level."""
    buffer = io.BytesIO()
    Image.fromarray(encode.grid(images)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
