"""Pictures of a preparation, for people: contact sheets of what was kept and rejected, and distributions.

A sheet shows up to `TILES` photos. What a rejected photo repeats is shown to the right of it. A grey tile stands for
a file that has no pixels to show.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from raygan.data.filters import PAIRED

#: Photos on a sheet, and columns and side in pixels of their tiles.
TILES, COLUMNS, SIDE = 96, 12, 96

_CAPTION, _GAP = 24, 6
_PAPER, _INK, _MISSING = (255, 255, 255), (40, 40, 40), (214, 214, 214)

#: A function from indices of records to the pixels (S, S, 3) uint8 of those that have any.
PixelsOf = Callable[[np.ndarray], dict[int, np.ndarray]]


def pictures(records: pa.Table, pixels_of: PixelsOf) -> dict[str, bytes]:
    """PNG files by name: ``kept.png``, ``rejected-REASON.png`` for each reason, ``distributions.png``.

    records: judged (see `raygan.data.duplicates.Verdicts.table`).
    """
    reasons = np.array([reason or "" for reason in records["reason"].to_pylist()], dtype=object)
    kept = np.flatnonzero([where is not None for where in records["split"].to_pylist()])
    files = {"kept.png": _png(_sheet(records, _at_random(records, kept), pixels_of))}
    for reason in sorted(set(reasons) - {""}):
        chosen = _most_telling(records, np.flatnonzero(reasons == reason), reason)
        files[f"rejected-{reason}.png"] = _png(_sheet(records, chosen, pixels_of))
    files["distributions.png"] = _distributions(records, kept)
    return files


def _at_random(records: pa.Table, indices: np.ndarray) -> np.ndarray:
    """`TILES` of them with the smallest hashes, which is as good as random."""
    hashes = records["hash"].take(pa.array(indices)).to_pylist()
    return indices[np.argsort(np.array(hashes, dtype=object), kind="stable")[:TILES]]


def _most_telling(records: pa.Table, indices: np.ndarray, reason: str) -> np.ndarray:
    """Those nearest to being kept come first, where a look is most needed; pairs take two tiles."""
    scores = np.array([score or 0.0 for score in records["score"].take(pa.array(indices)).to_pylist()])
    high_is_near = reason in ("flat", "blurry", "too_small") or reason in PAIRED
    order = np.argsort(-scores if high_is_near else scores, kind="stable")
    return indices[order][: TILES // 2 if reason in PAIRED else TILES]


def _sheet(records: pa.Table, indices: Sequence[int] | np.ndarray, pixels_of: PixelsOf) -> Image.Image:
    partners = records["partner"].to_pylist()
    tiles: list[int] = []
    for index in indices:
        tiles += [int(index)] if partners[index] is None else [int(index), partners[index]]
    pixels = pixels_of(np.unique(np.array(tiles, np.int64)))
    rows = max(1, -(-len(tiles) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * (SIDE + _GAP), rows * (SIDE + _CAPTION + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, index in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        left, top = column * (SIDE + _GAP), row * (SIDE + _CAPTION + _GAP)
        sheet.paste(_tile(pixels.get(index)), (left, top))
        draw.multiline_text((left, top + SIDE + 1), _caption(records, index), fill=_INK, font=font, spacing=1)
    return sheet


def _tile(pixels: np.ndarray | None) -> Image.Image:
    if pixels is None:
        return Image.new("RGB", (SIDE, SIDE), _MISSING)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _caption(records: pa.Table, index: int) -> str:
    """The end of the path, which tells most, and the measure that it was rejected by."""
    path, score, reason = (records[name][index].as_py() for name in ("path", "score", "reason"))
    name = path if len(path) <= 16 else f"…{path[-15:]}"
    return f"{name}\n{score:.4g}" if reason and score is not None else name


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # photos get hardly smaller with more, which takes five times as long
    return buffer.getvalue()


def _distributions(records: pa.Table, kept: np.ndarray) -> bytes:
    """Histograms of size, brightness and sharpness, of all decoded photos and of those kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = np.minimum(records["width"].to_numpy(), records["height"].to_numpy()).astype(float)
    panels = {
        "short side (px)": np.where(side > 0, side, np.nan),
        "brightness (0 to 255)": records["brightness"].to_numpy(),
        "sharpness": records["sharpness"].to_numpy(),
    }
    figure = Figure(figsize=(12, 3.2))
    figure.subplots_adjust(left=0.06, right=0.98, wspace=0.22)
    FigureCanvasAgg(figure)
    for axis, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 1, high + 1, 41)
        for label, part, colour in (("before", known, "#c9c9c9"), ("after", values[kept], "#3b6fb5")):
            axis.stairs(np.histogram(part, edges)[0], edges, fill=True, color=colour, label=label)
        axis.set(title=title, ylabel="photos")
    figure.axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
