"""Charts with matplotlib, as the bytes of PNG files: confusion, calibration, histograms, bars, the usefulness study."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # takes seconds to import, which the driver of prepare doesn't need
    from torch import Tensor

_BLUE, _GREY = "#3b6fb5", "#c9c9c9"

#: Colors of lines, which color-blind people can tell apart (Okabe and Ito 2008, without yellow and black).
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")

#: Labels up to which the cells of a confusion matrix have numbers, and its rows names: dogs have 120 breeds, people
#: thousands of names.
_NUMBERED, _NAMED = 20, 150

#: Letters of a name that fit below a cell of a confusion matrix; longer names stand upright.
_FITS = 8

#: Bins of confidence.
_BINS = 15


def confusion(matrix: Tensor, labels: Sequence[str]) -> bytes:
    """How often images of a label (row) were classified as each label (column), shaded by the share of the row.

    Cells have numbers, and rows names, where there is room for them.

    Args:
        matrix: int64 (labels, labels).
        labels: names of rows and columns.
    """
    count = len(labels)
    side = 0.8 * min(count, _NUMBERED)
    names = [_text(label) for label in labels] if count <= _NAMED else []
    font = min(10.0, 0.8 * 72 * side / count)
    longest = max(map(len, names), default=0)
    room = 0.6 * font / 72 * max(0, longest - _FITS)
    upright = longest > _FITS or count > _NUMBERED
    figure, (axes,) = row_of_axes(2.2 + side + room, 1.8 + side + room * upright)
    counts = matrix.numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape) if count <= _NUMBERED else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color)
    axes.set(xlabel="classified as", ylabel="label")
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    return to_png(figure)


def calibration(probabilities: Tensor, targets: Tensor) -> bytes:
    """Accuracy against confidence in equal bins, with the number of images in each bin.

    Args:
        probabilities: (n, labels), 0 to 1.
        targets: int64 (n,), the true classes.
    """
    confidence, predicted = probabilities.max(1)
    right = (predicted == targets).numpy()
    edges = np.linspace(0, 1, _BINS + 1)
    bin_of = np.clip(np.digitize(confidence.numpy(), edges) - 1, 0, _BINS - 1)
    counts = np.bincount(bin_of, minlength=_BINS)
    accuracy = np.bincount(bin_of, right, minlength=_BINS) / np.maximum(counts, 1)
    figure, (axes,) = row_of_axes(4.6, 4.2)
    centers = (edges[:-1] + edges[1:]) / 2
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes.bar(centers[counts > 0], accuracy[counts > 0], 0.9 / _BINS, color=_BLUE)
    for center, count, height in zip(centers, counts, accuracy, strict=True):
        if count:
            inside = height > 0.2
            bottom, color = (0.02, "white") if inside else (height + 0.02, "black")
            axes.text(center, bottom, f"{count:,}", ha="center", va="bottom", fontsize=6, rotation=90, color=color)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    return to_png(figure)


def histograms(panels: Mapping[str, Mapping[str, np.ndarray]], xlabel: str) -> bytes:
    """Histograms over [0, 1], in panels side by side.

    Args:
        panels: named values by the panel's title, at least one panel; each name gets a line, in every panel of the
            same color.
        xlabel: of every panel.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}
    figure, all_axes = row_of_axes(4.2 * len(panels), 3.1 + 0.16 * -(-len(names) // len(panels)), len(panels))
    edges = np.linspace(0, 1, 21)
    lines: dict[str, Any] = {}
    for axes, (title, series) in zip(all_axes, panels.items(), strict=True):
        for name, values in series.items():
            weights = np.full(len(values), 1 / max(1, len(values)))
            _, _, (lines[name],) = axes.hist(
                values, edges, weights=weights, histtype="step", linewidth=1.4, color=colors[name]
            )
        axes.set_title(_text(title, 50), fontsize=9)
        axes.set(xlabel=xlabel, ylabel="share of images", xlim=(0, 1))
    known = [_text(name) for name in lines]
    figure.legend(list(lines.values()), known, loc="outside lower center", ncols=len(panels), fontsize=7)
    return to_png(figure)


def bars(values: Mapping[str, tuple[float, float]], title: str) -> bytes:
    """Horizontal bars.

    Args:
        values: each bar's value and standard error (0 for none) by its name.
        title: above the bars.
    """
    figure, (axes,) = row_of_axes(5.0, 0.8 + 0.32 * len(values))
    names = list(values)[::-1]
    widths = [values[name][0] for name in names]
    axes.barh(range(len(names)), widths, xerr=[values[name][1] for name in names], color=_BLUE, capsize=2)
    axes.set_yticks(range(len(names)), [_text(name) for name in names])
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    return to_png(figure)


def study(
    lines: Mapping[str, Sequence[tuple[int, float, float]]], level: Mapping[str, tuple[float, float]], ylabel: str
) -> bytes:
    """Accuracy against the number of real photos.

    Args:
        lines: points (real photos, mean, standard deviation) by mixture.
        level: mean and standard deviation of what doesn't depend on the number of real photos, by name.
        ylabel: which accuracy.
    """
    figure, (axes,) = row_of_axes(6.4, 4.4)
    for number, (name, points) in enumerate(lines.items()):
        xs, means, spreads = np.array(points).T
        beside = xs * 1.02 ** (number - (len(lines) - 1) / 2)  # else bars of the same size would cover each other
        axes.errorbar(beside, means, spreads, label=name, marker="o", markersize=4, capsize=3, linewidth=1.4)
    for name, (mean, spread) in level.items():
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=name)
        axes.axhspan(mean - spread, mean + spread, color=_GREY, alpha=0.4)
    sizes = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xscale("log")
    if sizes:
        axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="real photos in the training set (bars: standard deviation of single trainings)", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return to_png(figure)


def _text(name: str, most: int = 40) -> str:
    """A name for a chart: not too long, and never read as a formula or as a name to hide."""
    short = name if len(name) <= most else f"{name[: most - 1]}…"
    return short.replace("$", r"\$").replace("_", " ", 1) if short.startswith("_") else short.replace("$", r"\$")


def row_of_axes(width: float, height: float, count: int = 1) -> tuple[Any, list[Any]]:
    """A figure of this size in inches, and its axes. Without pyplot, which keeps every figure in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in all_axes:
        axes.set_prop_cycle(color=_COLORS)
    return figure, all_axes


def to_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
