"""What a search found: a table, plots, and samples side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raygan import pictures as images
from raygan.charts import row_of_axes, to_png
from raygan.tuning.space import Axis

if TYPE_CHECKING:
    from raygan.tuning.trial import TrialRecord

#: Best trials in the table, and in the picture of samples.
_LISTED, _SHOWN = 10, 3

#: Height of a plot in inches.
_HEIGHT = 3.6

#: Samples of each trial in the picture, and in a row of it.
_SAMPLES, _COLUMNS = 32, 8


def table(ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], baseline: TrialRecord | None, full: int) -> str:
    """The best trials and the baseline, and how many images early stopping saved.

    Args:
        ranked: trials with a KID, the best first; at least one.
        trials: all of them.
        baseline: the trial with the baseline's settings, if there is one.
        full: images in a trial that isn't stopped early.
    """
    names = list(ranked[0].point)
    shown = list(ranked[:_LISTED])
    if baseline is not None and baseline not in shown:
        shown.append(baseline)
    rows = [["trial", "KID", "at kimg", "trained kimg", "state", *names]]
    for trial in shown:
        mark = " (baseline)" if trial is baseline else ""
        kid = f"{trial.kid:.4g}" if trial in ranked else "-"
        rows.append(
            [trial.number + mark, kid, f"{trial.kid_at / 1000:g}", f"{trial.images / 1000:g}", trial.state]
            + [_short(trial.point[name]) for name in names]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    trained, grid = sum(trial.images for trial in trials), full * len(trials)
    states = ", ".join(f"{count} {state}" for state, count in sorted(Counter(trial.state for trial in trials).items()))
    return "\n".join(
        [
            *lines,
            f"{len(trials)} trials ({states}) trained {trained / 1000:g} kimg, {1 - trained / grid:.0%} less than "
            f"the {grid / 1000:g} kimg of all trials at full length",
        ]
    )


def pictures(
    axes: Sequence[Axis], ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], baseline: TrialRecord | None
) -> dict[str, bytes]:
    """PNG files by name: each setting against KID, parallel coordinates, the learning-rate plane, curves, samples."""
    drawn = {
        "settings.png": _against_kid(axes, ranked, baseline),
        "curves.png": _curves(trials, baseline),
        "parallel.png": _parallel(axes, ranked, baseline),
        "samples.png": _samples(ranked, baseline),
    }
    if {"generator_lr", "critic_lr"} <= {axis.name for axis in axes}:
        drawn["learning-rates.png"] = _plane(axes, ranked, baseline)
    return {name: content for name, content in drawn.items() if content}


def _against_kid(axes: Sequence[Axis], ranked: Sequence[TrialRecord], baseline: TrialRecord | None) -> bytes:
    figure, panels = row_of_axes(4 * len(axes), _HEIGHT, len(axes))
    for axis, panel in zip(axes, panels, strict=True):
        others = [trial for trial in ranked if trial is not baseline]
        ordered = _ordered(others, axis)
        values = [str(t.point[axis.name]) if axis.choices else t.point[axis.name] for t in ordered]
        panel.scatter(values, [t.kid for t in ordered], s=18)
        if baseline in ranked and baseline is not None:
            value = baseline.point[axis.name]
            panel.scatter([str(value) if axis.choices else value], [baseline.kid], marker="*", s=110, label="baseline")
            panel.legend(fontsize=8)
        if not axis.choices:
            panel.set_xscale("log")
            panel.tick_params("x", which="both", labelrotation=45, labelsize=8)  # else they cover each other
        panel.set_xlabel(axis.name)
        panel.set_ylabel("best KID")
        panel.grid(alpha=0.3)
    return to_png(figure)


def _ordered(trials: Sequence[TrialRecord], axis: Axis) -> list[TrialRecord]:
    """Trials in the order of the axis's choices; a categorical plot would use the order of appearance."""
    order = {value: place for place, value in enumerate(axis.choices)}
    # The baseline's value may be none of the choices, also in a trial whose other settings PBT has changed since.
    return sorted(trials, key=lambda trial: order.get(trial.point[axis.name], len(order)))


def _curves(trials: Sequence[TrialRecord], baseline: TrialRecord | None) -> bytes:
    figure, (panel,) = row_of_axes(4, _HEIGHT, 1)
    for trial in trials:
        if trial.curve:
            images, kids = zip(*trial.curve, strict=True)
            style = {"linewidth": 2.5, "color": "black", "label": "baseline"} if trial is baseline else {"linewidth": 1}
            panel.plot([count / 1000 for count in images], kids, marker=".", **style)
    panel.set_xlabel("thousands of images")
    panel.set_ylabel("KID")
    panel.grid(alpha=0.3)
    if baseline is not None and baseline.curve:
        panel.legend(fontsize=8)
    return to_png(figure)


def _parallel(axes: Sequence[Axis], ranked: Sequence[TrialRecord], baseline: TrialRecord | None) -> bytes:
    from matplotlib import colormaps

    figure, (panel,) = row_of_axes(2 + 1.6 * len(axes), _HEIGHT, 1)
    kids = np.array([trial.kid for trial in ranked])
    shades = (kids - kids.min()) / max(float(np.ptp(kids)), 1e-12)
    for trial, shade in zip(ranked, shades, strict=True):
        heights = [_height(axis, trial.point[axis.name]) for axis in axes] + [float(shade)]
        width, style = (3, "--") if trial is baseline else (1.3, "-")
        panel.plot(heights, color=colormaps["viridis_r"](1 - shade), linewidth=width, linestyle=style)
    panel.set_xticks(range(len(axes) + 1), [*(axis.name for axis in axes), "KID"])
    ranges = [(axis.choices[0], axis.choices[-1]) if axis.choices else (axis.low, axis.high) for axis in axes]
    for place, ends in enumerate([*ranges, (float(kids.min()), float(kids.max()))]):
        for height, value in zip((0, 1), ends, strict=True):
            panel.annotate(
                _short(value), (place, height), fontsize=7, ha="center", va="top" if height == 0 else "bottom"
            )
    panel.set_yticks([])
    panel.set_title("best KID dark; baseline dashed", fontsize=9)
    return to_png(figure)


def _height(axis: Axis, value: Any) -> float:
    """A value's place on its axis, 0 to 1."""
    if axis.choices:
        return axis.choices.index(value) / max(1, len(axis.choices) - 1) if value in axis.choices else 0.5
    return float(np.clip(np.log(value / axis.low) / np.log(axis.high / axis.low), 0, 1))


def _plane(axes: Sequence[Axis], ranked: Sequence[TrialRecord], baseline: TrialRecord | None) -> bytes:
    """The plane of both learning rates: trials, and KID interpolated between them as color."""
    figure, (panel,) = row_of_axes(5.5, _HEIGHT, 1)
    rates = {axis.name: axis for axis in axes if axis.name in ("generator_lr", "critic_lr")}
    points = np.log10([[trial.point["generator_lr"], trial.point["critic_lr"]] for trial in ranked])
    kids = np.array([trial.kid for trial in ranked])
    lows = np.minimum(points.min(0), [_low(rates["generator_lr"]), _low(rates["critic_lr"])]) - 0.05
    highs = np.maximum(points.max(0), [_high(rates["generator_lr"]), _high(rates["critic_lr"])]) + 0.05
    xs, ys = (np.linspace(low, high, 80) for low, high in zip(lows, highs, strict=True))
    cells = np.stack(np.meshgrid(xs, ys), -1)
    distances = np.linalg.norm(cells[:, :, None] - points, axis=-1)
    weights = 1 / (distances**2 + 1e-3)  # inverse distance (Shepard 1968): smooth, and exact at the trials
    heat = panel.pcolormesh(10**xs, 10**ys, (weights * kids).sum(-1) / weights.sum(-1), cmap="viridis", shading="auto")
    figure.colorbar(heat, ax=panel, label="best KID, interpolated")
    panel.scatter(10 ** points[:, 0], 10 ** points[:, 1], c="white", edgecolors="black", s=25)
    if baseline is not None and baseline in ranked:
        x, y = baseline.point["generator_lr"], baseline.point["critic_lr"]
        panel.scatter([x], [y], marker="*", c="red", s=120, label="baseline")
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


def _samples(ranked: Sequence[TrialRecord], baseline: TrialRecord | None) -> bytes:
    """Samples of the best trials and the baseline, as far as their checkpoints are still there."""
    from raygan.training.monitor import draw

    shown = list(ranked[:_SHOWN])
    if baseline is not None and baseline in ranked and baseline not in shown:
        shown.append(baseline)
    panels = []
    for trial in shown:
        if trial.is_kept:
            name = "baseline" if trial is baseline else trial.number
            panels.append((f"{name}: KID {trial.kid:.3g}", draw(trial.generator()[0], _SAMPLES, seed=1)))
    return images.png(images.side_by_side(panels, _COLUMNS)) if panels else b""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
