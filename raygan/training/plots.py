"""What a finished run looks like: its curves, its samples' progress as an animation, and walks through the latents."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from raygan import pictures
from raygan.charts import row_of_axes, to_png
from raygan.models.gan import Generator
from raygan.models.latents import images_of, latents_of, slerp
from raygan.runtime import storage

#: Panels in order: a title, and how the names of the metrics in it begin. An objective adds its own terms.
_PANELS = {
    "losses": ("critic_loss", "generator_loss"),
    "penalties": (),
    "KID, lower is better": ("kid",),
    "critic's scores": ("score_",),
    "shares": ("animal_mass", "train_distance", "sample_spread", "augmented"),
}


def curves(records: Sequence[Mapping[str, float]], panels_of: Mapping[str, str]) -> bytes:
    """A run's losses and quality against thousands of images, as a PNG; empty if there is nothing to show.

    Args:
        records: metrics, each of one moment, with ``images``. KID is drawn with its standard error.
        panels_of: the panel of each of the objective's terms, by title.
    """
    titles = dict.fromkeys([*_PANELS, *panels_of.values()])
    begins = {title: (*_PANELS.get(title, ()), *(n for n, t in panels_of.items() if t == title)) for title in titles}
    panels = [(title, found) for title, names in begins.items() if (found := _matching(records, names))]
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


def _matching(records: Sequence[Mapping[str, float]], begins: tuple[str, ...]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name.startswith(begins) and not name.endswith("_error")]


def progress(folder: str) -> bytes:
    """The generated halves of the sample grids in a folder, in order, as an animated WebP; empty if there are none."""
    paths = storage.list_files(folder, "samples-*-images.png")
    grids = [Image.open(io.BytesIO(storage.read_bytes(path))) for path in paths]
    return pictures.animation([grid.crop((grid.width // 2, 0, grid.width, grid.height)) for grid in grids])


def interpolation(generator: Generator, rows: int = 6, columns: int = 10) -> bytes:
    """Walks between two latents, one per row, as a PNG. They follow the sphere on which normal latents lie."""
    z_dim = generator.settings.z_dim
    starts, ends = (latents_of(range(first, first + rows), z_dim) for first in (0, rows))
    shares = torch.linspace(0, 1, columns).repeat(rows)
    latents = slerp(starts.repeat_interleave(columns, 0), ends.repeat_interleave(columns, 0), shares)
    classes = None
    if generator.labels:
        classes = (torch.arange(rows) % len(generator.labels)).repeat_interleave(columns)
    return pictures.png(pictures.grid(images_of(generator, latents, classes), columns))
