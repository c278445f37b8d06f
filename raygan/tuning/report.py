"""What a search found, for people: a table, plots, and samples side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raygan import pictures as draw
from raygan.charts import row_of_axes, to_png
from raygan.runtime import storage
from raygan.tuning.space import Axis

if TYPE_CHECKING:
    from raygan.tuning.trial import TrialRecord

#: Trials in the table, and among the samples side by side.
_LISTED, _SHOWN = 10, 3

#: Height of a plot in inches.
_HEIGHT = 3.6

#: Samples of each trial shown, and in a row.
_SAMPLES, _COLUMNS = 32, 8


def table(ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], source: TrialRecord | None, full: int) -> str:
    """The best trials, the source's settings among them, and what stopping losers saved.

    full: images of a trial that nobody stopped.
    """
    names = list(ranked[0].point)
    shown = list(ranked[:_LISTED])
    if source is not None and source not in shown:
        shown.append(source)
    rows = [["trial", "KID", "at kimg", "trained kimg", "state", *names]]
    for trial in shown:
        mark = " (source)" if trial is source else ""
        kid = f"{trial.kid:.4g}" if trial in ranked else "-"
        rows.append(
            [trial.number + mark, kid, f"{trial.kid_at / 1000:g}", f"{trial.images / 1000:g}", trial.state]
            + [_short(trial.point[name]) for name in names]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    trained, grid = sum(trial.images for trial in trials), full * len(trials)
    told = ", ".join(f"{count} {state}" for state, count in sorted(Counter(trial.state for trial in trials).items()))
    return "\n".join(
        [
            *lines,
            f"{len(trials)} trials ({told}) trained {trained / 1000:g} kimg, {1 - trained / grid:.0%} less than "
            f"the {grid / 1000:g} kimg of all to the end",
        ]
    )


def pictures(
    axes: Sequence[Axis], ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], source: TrialRecord | None
) -> dict[str, bytes]:
    """PNG files by name: each setting against KID, parallel coordinates, the learning-rate plane, curves, samples."""
    found = {
        "settings.png": _against_kid(axes, ranked, source),
        "curves.png": _curves(trials, source),
        "parallel.png": _parallel(axes, ranked, source),
        "samples.png": _samples(ranked, source),
    }
    if {"generator_lr", "critic_lr"} <= {axis.name for axis in axes}:
        found["learning-rates.png"] = _plane(axes, ranked, source)
    return {name: content for name, content in found.items() if content}


def _against_kid(axes: Sequence[Axis], ranked: Sequence[TrialRecord], source: TrialRecord | None) -> bytes:
    figure, panels = row_of_axes(4 * len(axes), _HEIGHT, len(axes))
    for axis, panel in zip(axes, panels, strict=True):
        others = [trial for trial in ranked if trial is not source]
        panel.scatter([str(t.point[axis.name]) if axis.choices else t.point[axis.name] for t in _ordered(others, axis)],
                      [t.kid for t in _ordered(others, axis)], s=18)  # fmt: skip
        if source in ranked and source is not None:
            value = source.point[axis.name]
            panel.scatter([str(value) if axis.choices else value], [source.kid], marker="*", s=110, label="source")
            panel.legend(fontsize=8)
        if not axis.choices:
            panel.set_xscale("log")
        panel.set_xlabel(axis.name)
        panel.set_ylabel("best KID")
        panel.grid(alpha=0.3)
    return to_png(figure)


def _ordered(trials: Sequence[TrialRecord], axis: Axis) -> list[TrialRecord]:
    """By the axis's own order, which a plot of names would else take from the order of appearance."""
    return sorted(trials, key=lambda trial: axis.choices.index(trial.point[axis.name]) if axis.choices else 0)


def _curves(trials: Sequence[TrialRecord], source: TrialRecord | None) -> bytes:
    figure, (panel,) = row_of_axes(4, _HEIGHT, 1)
    for trial in trials:
        if trial.curve:
            images, kids = zip(*trial.curve, strict=True)
            style = {"linewidth": 2.5, "color": "black", "label": "source"} if trial is source else {"linewidth": 1}
            panel.plot([count / 1000 for count in images], kids, marker=".", **style)
    panel.set_xlabel("thousands of images")
    panel.set_ylabel("KID")
    panel.grid(alpha=0.3)
    if source is not None and source.curve:
        panel.legend(fontsize=8)
    return to_png(figure)


def _parallel(axes: Sequence[Axis], ranked: Sequence[TrialRecord], source: TrialRecord | None) -> bytes:
    from matplotlib import colormaps

    figure, (panel,) = row_of_axes(2 + 1.6 * len(axes), _HEIGHT, 1)
    kids = np.array([trial.kid for trial in ranked])
    shades = (kids - kids.min()) / max(float(np.ptp(kids)), 1e-12)
    for trial, shade in zip(ranked, shades, strict=True):
        heights = [_height(axis, trial.point[axis.name]) for axis in axes] + [float(shade)]
        panel.plot(heights, color=colormaps["viridis_r"](1 - shade), linewidth=3 if trial is source else 1.3,
                   linestyle="--" if trial is source else "-")  # fmt: skip
    panel.set_xticks(range(len(axes) + 1), [*(axis.name for axis in axes), "KID"])
    for place, axis in enumerate(axes):
        ends = (axis.choices[0], axis.choices[-1]) if axis.choices else (axis.low, axis.high)
        for height, value in zip((0, 1), ends, strict=True):
            panel.annotate(
                _short(value), (place, height), fontsize=7, ha="center", va="top" if height == 0 else "bottom"
            )
    panel.set_yticks([])
    panel.set_title("best KID dark; source dashed", fontsize=9)
    return to_png(figure)


def _height(axis: Axis, value: Any) -> float:
    """Where a value stands on its axis, 0 to 1."""
    if axis.choices:
        return axis.choices.index(value) / max(1, len(axis.choices) - 1) if value in axis.choices else 0.5
    return float(np.clip(np.log(value / axis.low) / np.log(axis.high / axis.low), 0, 1))


def _plane(axes: Sequence[Axis], ranked: Sequence[TrialRecord], source: TrialRecord | None) -> bytes:
    """The plane of both learning rates: KID of the nearest trial as colour, and the trials."""
    figure, (panel,) = row_of_axes(5.5, _HEIGHT, 1)
    rates = {axis.name: axis for axis in axes if axis.name in ("generator_lr", "critic_lr")}
    points = np.log10([[trial.point["generator_lr"], trial.point["critic_lr"]] for trial in ranked])
    kids = np.array([trial.kid for trial in ranked])
    lows = np.minimum(points.min(0), [_low(rates["generator_lr"]), _low(rates["critic_lr"])]) - 0.05
    highs = np.maximum(points.max(0), [_high(rates["generator_lr"]), _high(rates["critic_lr"])]) + 0.05
    xs, ys = (np.linspace(low, high, 80) for low, high in zip(lows, highs, strict=True))
    cells = np.stack(np.meshgrid(xs, ys), -1)
    distances = np.linalg.norm(cells[:, :, None] - points, axis=-1)
    weights = 1 / (distances**2 + 1e-3)  # inverse distance (Shepard 1968): smooth, and true at the trials
    heat = panel.pcolormesh(
        10**xs, 10**ys, (weights * kids).sum(-1) / weights.sum(-1), cmap="viridis_r", shading="auto"
    )
    figure.colorbar(heat, ax=panel, label="best KID, interpolated")
    panel.scatter(10 ** points[:, 0], 10 ** points[:, 1], c="white", edgecolors="black", s=25)
    if source is not None and source in ranked:
        panel.scatter(
            [source.point["generator_lr"]], [source.point["critic_lr"]], marker="*", c="red", s=120, label="source"
        )
        panel.legend(fontsize=8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("generator_lr")
    panel.set_ylabel("critic_lr")
    return to_png(figure)


def _low(axis: Axis) -> float:
    return float(np.log10(min(axis.choices) if axis.choices else axis.low))


def _high(axis: Axis) -> float:
    return float(np.log10(max(axis.choices) if axis.choices else axis.high))


def _samples(ranked: Sequence[TrialRecord], source: TrialRecord | None) -> bytes:
    """The best trials' samples beside the source's, of those whose checkpoints are still there."""
    from raygan.models.gan import load_generator
    from raygan.training.monitor import draw as sample

    shown = list(ranked[:_SHOWN])
    if source is not None and source in ranked and source not in shown:
        shown.append(source)
    panels = []
    for trial in shown:
        if not storage.is_file(storage.join(trial.checkpoint, "generator.json")):
            continue
        name = "source" if trial is source else trial.number
        with storage.checkpoint_at(trial.checkpoint).as_directory() as folder:
            generator, _ = load_generator(Path(folder))
        panels.append((f"{name}: KID {trial.kid:.3g}", sample(generator, _SAMPLES, seed=1)))
    return draw.png(draw.side_by_side(panels, _COLUMNS)) if panels else b""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
