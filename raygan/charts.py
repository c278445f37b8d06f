"""Charts of judgements, as the bytes of PNG files: confusion, calibration, histograms, the usefulness study."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_INK, _PAPER, _BLUE, _GREY = (40, 40, 40), (255, 255, 255), "#3b6fb5", "#c9c9c9"


def confusion(matrix: Tensor, labels: Sequence[str]) -> bytes:
    """How often each label (row) was called each (column): counts, shaded by their share of the row."""
    figure, axes = _figure(2.2 + 0.8 * len(labels), 1.8 + 0.8 * len(labels))
    counts = matrix.numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour)
    axes.set(xticks=range(len(labels)), yticks=range(len(labels)), xlabel="called", ylabel="is")
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    return to_png(figure)


def calibration(probabilities: Tensor, targets: Tensor, bins: int = 15) -> bytes:
    """Accuracy against confidence in equal bins, and how many images each bin has."""
    sure, called = probabilities.max(1)
    right = (called == targets).numpy()
    edges = np.linspace(0, 1, bins + 1)
    of_bin = np.clip(np.digitize(sure.numpy(), edges) - 1, 0, bins - 1)
    counts = np.bincount(of_bin, minlength=bins)
    accuracy = np.bincount(of_bin, right, minlength=bins) / np.maximum(counts, 1)
    figure, axes = _figure(4.6, 4.2)
    middles = (edges[:-1] + edges[1:]) / 2
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes.bar(middles[counts > 0], accuracy[counts > 0], 1 / bins * 0.9, color=_BLUE)
    for middle, count in zip(middles, counts, strict=True):
        if count:
            axes.text(middle, 0.02, f"{count:,}", ha="center", fontsize=6, rotation=90, color="white")
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    return to_png(figure)


def histograms(panels: Mapping[str, Mapping[str, np.ndarray]], xlabel: str) -> bytes:
    """Histograms over [0, 1], one panel each (at least one), with a line for each named set of values."""
    figure, rows = row_of_axes(4.2 * len(panels), 3.0, len(panels))
    edges = np.linspace(0, 1, 21)
    for axes, (title, series) in zip(rows, panels.items(), strict=True):
        for name, values in series.items():
            weights = np.full(len(values), 1 / max(1, len(values)))
            axes.hist(values, edges, weights=weights, histtype="step", linewidth=1.4, label=name)
        axes.set(title=title, xlabel=xlabel, ylabel="share of images", xlim=(0, 1))
        axes.legend(fontsize=7)
    return to_png(figure)


def bars(values: Mapping[str, tuple[float, float]], title: str) -> bytes:
    """A horizontal bar for each name, with its standard error (0 for none)."""
    figure, axes = _figure(5.0, 0.8 + 0.32 * len(values))
    names = list(values)[::-1]
    widths = [values[name][0] for name in names]
    axes.barh(names, widths, xerr=[values[name][1] for name in names], color=_BLUE, capsize=2)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    return to_png(figure)


def study(
    lines: Mapping[str, Sequence[tuple[int, float, float]]], level: Mapping[str, tuple[float, float]], ylabel: str
) -> bytes:
    """Accuracy against number of real photos: a line for each mixture, with a bar for its spread.

    lines: points (real photos, mean, standard deviation). level: means and deviations that no number of real
    photos belongs to, drawn as horizontal lines.
    """
    figure, axes = _figure(6.4, 4.4)
    for name, points in lines.items():
        xs, means, spreads = zip(*points, strict=True)
        axes.errorbar(xs, means, spreads, label=name, marker="o", markersize=4, capsize=3, linewidth=1.4)
    for name, (mean, spread) in level.items():
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=name)
        axes.axhspan(mean - spread, mean + spread, color=_GREY, alpha=0.4)
    sizes = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="real photos in the training set (bars: deviation of single trainings)", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return to_png(figure)


def captioned(images: Tensor, captions: Sequence[str], columns: int = 8, side: int = 96) -> Image.Image:
    """uint8 images (n, 3, S, S) in rows, each over its caption."""
    font, line = ImageFont.load_default(11), 16
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * (side + 6), rows * (side + line + 4)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * (side + 6), row * (side + line + 4)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
        draw.text((left, top + side + 1), caption, fill=_INK, font=font)
    return sheet


def _figure(width: float, height: float) -> Any:
    figure, (axes,) = row_of_axes(width, height, 1)
    return figure, axes


def row_of_axes(width: float, height: float, count: int) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side; without pyplot, which keeps every figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def to_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
