"""From results of single trainings to rows of the table: means over seeds, and what generated images change.

The gain from generated images is the difference to real photos alone, seed by seed, since trainings of one seed start
with the same weights and real photos. Its uncertainty is Student's 95 % interval of the mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from raygan.classifier.usefulness.trial import Trial


@dataclass(frozen=True)
class Row:
    """Trainings that differ only in their seed, summarized.

    Attributes:
        mixture: in words.
        real: real photos.
        generated: generated images.
        trainings: how many finished.
        diverged: how many diverged.
        passes: times each image was seen.
        accuracy: mean over seeds, as are `balanced_accuracy`, `auroc` and `ece`.
        deviation: standard deviation of a single training's accuracy; 0 for one training.
        gain: mean gain in accuracy over as many real photos alone; None without such a pair.
        interval: half the gain's 95 % confidence interval; None with fewer than two pairs.
    """

    mixture: str
    real: int
    generated: int
    trainings: int
    diverged: int
    passes: float
    accuracy: float
    deviation: float
    balanced_accuracy: float
    auroc: float
    ece: float
    gain: float | None = None
    interval: float | None = None


def summarize(results: dict[Trial, dict[str, float]], images: int) -> list[Row]:
    """A row for each kind of training that finished at least once, in the order of the results.

    Args:
        results: see `raygan.classifier.usefulness.trial.load_results`.
        images: images that each training saw.
    """
    kinds: dict[tuple[str, int, int], dict[int, dict[str, float]]] = {}
    diverged = Counter(trial.kind for trial, result in results.items() if "diverged" in result)
    for trial, result in results.items():
        if "diverged" not in result:
            kinds.setdefault(trial.kind, {})[trial.seed] = result
    alone = {real: found for (_, real, generated), found in kinds.items() if not generated}

    def mean(found: dict[int, dict[str, float]], name: str) -> float:
        return float(np.mean([result[name] for result in found.values()]))

    rows = []
    for (mixture, real, generated), found in kinds.items():
        accuracies = [result["accuracy"] for result in found.values()]
        pairs = alone.get(real, {}) if generated else {}
        gains = [found[seed]["accuracy"] - pairs[seed]["accuracy"] for seed in found if seed in pairs]
        rows.append(
            Row(
                mixture,
                real,
                generated,
                trainings=len(found),
                diverged=diverged[mixture, real, generated],
                passes=images / (real + generated),
                accuracy=mean(found, "accuracy"),
                deviation=float(np.std(accuracies, ddof=1)) if len(found) > 1 else 0.0,
                balanced_accuracy=mean(found, "balanced_accuracy"),
                auroc=mean(found, "auroc"),
                ece=mean(found, "ece"),
                gain=float(np.mean(gains)) if gains else None,
                interval=half_interval(gains) if len(gains) > 1 else None,
            )
        )
    return rows


def diverged_kinds(results: dict[Trial, dict[str, float]]) -> list[str]:
    """In words, the kinds of training without a row because all of them diverged."""
    finished = {trial.kind for trial, result in results.items() if "diverged" not in result}
    diverged = Counter(trial.kind for trial in results if trial.kind not in finished)
    return [
        f"{mixture}, {real:,} real and {generated:,} generated: {count} diverged, none finished"
        for (mixture, real, generated), count in diverged.items()
    ]


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean of at least two values, by Student's t."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
