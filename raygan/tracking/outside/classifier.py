"""A registered classifier for `mlflow.pyfunc`: images in, the probability of each label out."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class ImageClassifier(PythonModel):
    """Tells how likely each label is."""

    def load_context(self, context: Any) -> None:
        """Load the network from JSON and safetensors files."""
        from raygan.models.googlenet import load_classifier

        self.classifier = load_classifier(Path(context.artifacts["weights"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify.

        Args:
            context: MLflow's.
            model_input: a row for each image, with `image`: the bytes of a file (JPEG, PNG and what else Pillow reads),
                the same in base64, or whole numbers from 0 to 255 (H, W, 3). The central square counts.
            params: not used.

        Returns:
            A row for each image, with a column for each label; rows sum to 1.
        """
        import torch

        size = self.classifier.image_size
        squares = [_square(image, number, size) for number, image in enumerate(model_input["image"])]
        pixels = np.stack(squares) if squares else np.empty((0, size, size, 3), np.uint8)
        found = self.classifier.probabilities(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return pd.DataFrame(found.numpy(), columns=list(self.classifier.labels))


def _square(image: Any, number: int, size: int) -> np.ndarray:
    """The central square of an image: uint8 (size, size, 3)."""
    from PIL import Image, ImageOps

    try:
        if isinstance(image, str):
            image = base64.b64decode(image, validate=True)
        if isinstance(image, bytes | bytearray):
            photo = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
        else:
            photo = Image.fromarray(_pixels(image)).convert("RGB")
    except (OSError, ValueError, TypeError, binascii.Error) as error:
        raise ValueError(f"image {number} is neither a picture's bytes, base64 nor uint8 (H, W, 3): {error}") from None
    return np.asarray(ImageOps.fit(photo, (size, size), Image.Resampling.BICUBIC))


def _pixels(image: Any) -> np.ndarray:
    """An image as uint8. Raises ValueError if its numbers are others, such as floats from 0 to 1."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 255):
        raise ValueError(f"it has {values.dtype} values, not whole numbers from 0 to 255")
    return values.astype(np.uint8)


mlflow.models.set_model(ImageClassifier())
