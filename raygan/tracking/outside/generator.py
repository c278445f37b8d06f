"""A registered generator for `mlflow.pyfunc`: seeds in, pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class SeededGenerator(PythonModel):
    """Draws one image for each seed, the same that raygan's service draws on the same processor and torch."""

    def load_context(self, context: Any) -> None:
        """Load the network from JSON and safetensors files."""
        from raygan.models.drawing import Drawing
        from raygan.models.gan import load_generator

        generator, about = load_generator(Path(context.artifacts["weights"]).parent)
        self.drawing = Drawing(generator)
        self.labels = generator.labels or (str(about.get("label", "all")),)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Draw.

        Args:
            context: MLflow's.
            model_input: a row for each image, with its `seed` and, where the generator has several labels, a `label`.
            params: `truncation`, above 0 to 1.

        Returns:
            uint8 (n, H, W, 3).
        """
        truncation = float((params or {}).get("truncation", 1.0))
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation must be above 0 and at most 1, not {truncation:g}")
        seeds = model_input["seed"].astype("int64")
        if (seeds < 0).any():
            raise ValueError(f"seed must be at least 0, not {seeds.min()}")
        labels = self._labels_of(model_input)
        size = self.drawing.generator.settings.image_size
        images = np.empty((len(seeds), size, size, 3), np.uint8)
        for label in sorted(set(labels)):
            rows = [number for number, own in enumerate(labels) if own == label]
            images[rows] = self.drawing.of_seeds(seeds.iloc[rows].tolist(), label, truncation).numpy()
        return images

    def _labels_of(self, rows: pd.DataFrame) -> list[str]:
        """The label of each row."""
        if "label" not in rows or rows["label"].isna().all():
            if len(self.labels) > 1:
                raise ValueError(f"label is required, one of {', '.join(self.labels)}")
            return [self.labels[0]] * len(rows)
        labels = [str(label) for label in rows["label"]]
        strange = sorted(set(labels) - set(self.labels))
        if strange:
            raise ValueError(f"label must be one of {', '.join(self.labels)}, not {strange[0]!r}")
        return labels


mlflow.models.set_model(SeededGenerator())
