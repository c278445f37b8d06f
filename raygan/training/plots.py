"""Plots for people: how a training went."""

from __future__ import annotations

from raygan.charts import row_of_axes, to_png

#: The panels of a run's curves: a title, and which metrics it shows by how their names begin or end.
_PANELS = (
    ("losses", ("critic_loss", "generator_loss", "wasserstein", "real_over_fake")),
    ("penalties", ("gradient_penalty", "r1", "r2")),
    ("KID, lower is better", ("kid",)),
    ("shares", ("animal_mass", "train_distance", "probability_real", "probability_fake", "sample_spread")),
)


def curves(records: list[dict[str, float]]) -> bytes:
    """A run's losses and quality against thousands of images, as a PNG; empty if there is nothing to show.

    records: metrics of one moment each, with ``images``. KID is drawn with its standard error.
    """
    panels = [(title, found) for title, names in _PANELS if (found := _matching(records, names))]
    if not panels:
        return b""
    figure, row = row_of_axes(5 * len(panels), 3.6, len(panels))
    for axes, (title, names) in zip(row, panels, strict=True):
        for name in names:
            points = [(r["images"] / 1000, r[name], r.get(f"{name}_error")) for r in records if name in r]
            xs, ys, errors = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            if None in errors:
                axes.plot(xs, ys, label=name, linewidth=1.2)
            else:
                axes.errorbar(xs, ys, errors, label=name, linewidth=1.2, marker=".", capsize=2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("thousands of images")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return to_png(figure)


def _matching(records: list[dict[str, float]], begins: tuple[str, ...]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name.startswith(begins) and not name.endswith("_error")]
