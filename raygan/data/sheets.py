"""Pictures of a data set for people: contact sheets of kept and rejected photos, and distributions of measures.

A sheet shows up to `TILES` photos. The photo to the right of a rejected duplicate is the one it repeats. A gray tile
stands for a file without pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan import charts, pictures
from raygan.data import filters
from raygan.data.registry import FILTERS

#: Photos on a sheet, and its columns.
TILES, COLUMNS = 96, 12

#: A function from indices of records to pixels, uint8 (S, S, 3), by index, for those that have any.
PixelsOf = Callable[[np.ndarray], dict[int, np.ndarray]]


def drawn(records: pa.Table, pixels_of: PixelsOf) -> dict[str, bytes]:
    """Draw all pictures.

    Args:
        records: judged (see `raygan.data.duplicates.Verdicts.table`).
        pixels_of: gives the photos' pixels.

    Returns:
        PNG files by name: ``kept.png``, ``rejected-REASON.png`` for each reason, ``distributions.png``.
    """
    reasons = records["reason"]
    kept = np.flatnonzero(pc.is_valid(records["split"]).to_numpy())
    files = {"kept.png": _sheet(records, _at_random(records, kept), pixels_of)}
    for reason in sorted(set(reasons.unique().to_pylist()) - {None}):
        rejected = np.flatnonzero(pc.equal(reasons, reason).fill_null(False).to_numpy())
        files[f"rejected-{reason}.png"] = _sheet(records, _most_telling(records, rejected, reason), pixels_of)
    files["distributions.png"] = _distributions(records, kept)
    return files


def _at_random(records: pa.Table, indices: np.ndarray) -> np.ndarray:
    """The `TILES` with the smallest hashes, which is as good as a random choice."""
    hashes = pa.table({"hash": records["hash"].take(pa.array(indices)), "number": np.arange(len(indices))})
    keys = [("hash", "ascending"), ("number", "ascending")]
    chosen: np.ndarray = indices[pc.select_k_unstable(hashes, TILES, keys).to_numpy()]
    return chosen


def _most_telling(records: pa.Table, indices: np.ndarray, reason: str) -> np.ndarray:
    """Borderline photos first, since they most need a look. A pair takes two tiles."""
    rejects_low, paired = False, False
    if reason in FILTERS.names():
        found = filters.load(reason)
        rejects_low, paired = found.rejects_low, found.paired
    scores = records["score"].take(pa.array(indices)).fill_null(0.0).to_numpy()
    order = np.argsort(-scores if rejects_low else scores, kind="stable")
    return indices[order][: TILES // 2 if paired else TILES]


def _sheet(records: pa.Table, indices: np.ndarray, pixels_of: PixelsOf) -> bytes:
    partners = records["partner"].take(pa.array(indices)).to_pylist()
    tiles: list[int] = []
    for index, partner in zip(indices.tolist(), partners, strict=True):
        tiles += [index] if partner is None else [index, partner]
    pixels = pixels_of(np.unique(np.array(tiles, np.int64)))
    captions = [_caption(records, index) for index in tiles]
    sheet = pictures.captioned([pixels.get(index) for index in tiles], captions, COLUMNS)
    return pictures.png(sheet, compress_level=1)  # higher levels take five times as long and save little


def _caption(records: pa.Table, index: int) -> str:
    """The end of the path, which says most, and the score behind a rejection."""
    path, score, reason = (records[name][index].as_py() for name in ("path", "score", "reason"))
    name = path if len(path) <= 16 else f"…{path[-15:]}"
    return f"{name}\n{score:.4g}" if reason and score is not None else name


def _distributions(records: pa.Table, kept: np.ndarray) -> bytes:
    """Histograms of size, brightness and sharpness, for all decoded photos and for the kept ones."""
    side = np.minimum(records["width"].to_numpy(), records["height"].to_numpy()).astype(float)
    panels = {
        "short side (px)": np.where(side > 0, side, np.nan),
        "brightness (0 to 255)": records["brightness"].to_numpy(),
        "sharpness": records["sharpness"].to_numpy(),
    }
    figure, all_axes = charts.row_of_axes(12, 3.2, len(panels))
    for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 1, high + 1, 41)
        for label, part, color in (("before", known, "#c9c9c9"), ("after", values[kept], "#3b6fb5")):
            axes.stairs(np.histogram(part, edges)[0], edges, fill=True, color=color, label=label)
        axes.set(title=title, ylabel="photos")
    all_axes[0].legend()
    return charts.to_png(figure)
