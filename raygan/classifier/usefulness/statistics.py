"""From results of single trainings to rows of the table: means over seeds, and what generated images change.

The gain from generated images is the difference to real photos alone, seed by seed, since trainings of one seed start
with the same weights and real photos. Its 95 % interval is Student's, for as many seeds as there are; its standard
error, by a bootstrap over seeds and photos (Efron and Tibshirani 1993), includes that of the validation photos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

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


def summarize(results: dict[Trial, dict[str, Any]], images: int) -> list[Row]:
    """A row for each kind of training that finished at least once, in the order of the results.

    Args:
        results: see `raygan.classifier.usefulness.trial.load_results`.
        images: images that each training saw.
    """
    kinds: dict[tuple[str, int, int], dict[int, dict[str, Any]]] = {}
    diverged = Counter(trial.kind for trial, result in results.items() if "diverged" in result)
    for trial, result in results.items():
        if "diverged" not in result:
            kinds.setdefault(trial.kind, {})[trial.seed] = result
    alone = {real: found for (_, real, generated), found in kinds.items() if not generated}

    def mean(found: dict[int, dict[str, Any]], name: str) -> float:
        return float(np.mean([result[name] for result in found.values()]))

    rows = []
    for (mixture, real, generated), found in kinds.items():
        accuracies = [result["accuracy"] for result in found.values()]
        pairs = alone.get(real, {}) if generated else {}
        seeds = [seed for seed in found if seed in pairs]
        gains = [found[seed]["accuracy"] - pairs[seed]["accuracy"] for seed in seeds]
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
                interval=half_interval([gain_by_photo(found[s], pairs[s]) for s in seeds]) if len(gains) > 1 else None,
            )
        )
    return rows


def diverged_kinds(results: dict[Trial, dict[str, Any]]) -> list[str]:
    """In words, the kinds of training without a row because all of them diverged."""
    finished = {trial.kind for trial, result in results.items() if "diverged" not in result}
    diverged = Counter(trial.kind for trial in results if trial.kind not in finished)
    return [
        f"{mixture}, {real:,} real and {generated:,} generated: {count} diverged, none finished"
        for (mixture, real, generated), count in diverged.items()
    ]


def gain_by_photo(mixed: dict[str, Any], alone: dict[str, Any]) -> np.ndarray:
    """The gain on each photo, -1, 0 or 1, and NaN for photos on which the trainings were not validated.

    Results of earlier versions don't tell photos apart: the gain in accuracy is then that of one photo.
    """
    if "right" not in mixed or "right" not in alone:
        return np.array([mixed["accuracy"] - alone["accuracy"]])
    first, second = (np.frombuffer(each["right"].encode(), np.uint8).astype(float) for each in (mixed, alone))
    gains: np.ndarray = np.where(first == ord("-"), np.nan, first - second)
    return gains


def half_interval(gains: Sequence[np.ndarray], replicates: int = 2000) -> float:
    """Half the 95 % confidence interval of the mean gain.

    Args:
        gains: for each of at least two seeds the gain on each photo (n,), NaN for photos that are not validated on.
        replicates: of the bootstrap.
    """
    random = np.random.default_rng(0)
    if len({len(each) for each in gains}) > 1:  # some results are of an earlier version
        gains = [np.nanmean(each, keepdims=True) for each in gains]
    table = np.stack(gains)
    known = ~np.isnan(table)
    table = np.where(known, table, 0.0)
    # All seeds are validated on about the same photos, so a photo is drawn for all seeds together.
    weights = random.multinomial(table.shape[1], np.full(table.shape[1], 1 / table.shape[1]), replicates)
    by_seed = (weights @ table.T) / np.maximum(weights @ known.T, 1)
    drawn = random.integers(0, len(table), (replicates, len(table)))
    means = np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)
    # Drawn from n seeds, means vary by (n - 1) / n of the variance that means of new seeds have.
    error = float(means.std(ddof=1)) * (len(table) / (len(table) - 1)) ** 0.5
    half: float = stdtrit(len(table) - 1, 0.975) * error
    return half
