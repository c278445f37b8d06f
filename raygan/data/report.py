"""What `prepare` did, for people and programs: report.json and rejected.parquet.

report.json:

    seen, kept, rejected, ignored   counts of files, or rows of Parquet inputs; kept + rejected + ignored = seen
    reasons                         number of rejected photos by reason
    ignored_because                 number of files left aside by kind
    labels                          for each label: seen, kept, rejected, train, validation
    label_conflicts                 duplicates and near-duplicates labeled differently from the photo kept
    outliers                        for each label: number found, threshold and median score, or why it was skipped;
                                    empty if the filter is off
    variation                       for each label: see `raygan.data.variation`
    inputs                          address and layout of each input

rejected.parquet has a row for each rejected photo: `path` relative to its input, `reason`, `score` (the measure behind
the reason; null if there is none), `detail`, `label`, `input`.

A reason is the name of a filter (`raygan.data.registry.FILTERS`), ``unreadable``, or ``no_face``.

pictures/: see `raygan.data.sheets`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygan.data import variation
from raygan.data.arrow import counts, whole
from raygan.data.listing import Listing
from raygan.errors import some
from raygan.runtime import storage

REPORT = "report.json"
REJECTED = "rejected.parquet"
PICTURES = "pictures"


def summarize(records: pa.Table, listing: Listing) -> dict[str, Any]:
    """The content of report.json, from judged records and the listing."""
    reasons = counts(records["reason"])
    kept = records.num_rows - records["split"].null_count
    no_images = pc.sum(records["ignored"]).as_py() or 0
    because = listing.ignored + Counter({"not an image": no_images})
    return {
        "seen": records.num_rows + sum(listing.ignored.values()),
        "kept": kept,
        "rejected": sum(reasons.values()),
        "ignored": sum(because.values()),
        "reasons": dict(sorted(reasons.items())),
        "ignored_because": dict(sorted(because.items())),
        "labels": _labels(records),
        "label_conflicts": _conflicts(records),
        "inputs": [
            {"address": source.address, "layout": layout}
            for source, layout in zip(listing.sources, listing.layouts, strict=True)
        ],
    }


def in_words(summary: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [", ".join(f"{summary[name]:,} {name}" for name in ("seen", "kept", "rejected", "ignored"))]
    if summary["reasons"]:
        lines.append(f"rejected: {reasons_in_words(summary)}")
    if conflicts := summary["label_conflicts"]:
        lines.append(f"note: {conflicts:,} repeated a photo of another label, which is kept; {REJECTED} names both")
    gone = [label for label, count in summary["labels"].items() if not count["kept"]]
    if gone:
        lines.append(f"note: no photo of {some(gone)} is left")
    small = [label for label, note in summary["outliers"].items() if "skipped" in note]
    if small:
        lines.append(f"outliers: not looked for in {some(small)}, with too few photos for statistics")
    known = {label: value for label, value in summary["variation"].items() if value is not None}
    if known:
        values = some([f"{label} {value:.3f}" for label, value in known.items()])
        lines.append(f"variation: {values} (aligned faces: 0.88 to 0.94, whole animals: 0.98)")
    wild = [label for label, v in known.items() if v > variation.HIGH and summary["labels"][label]["kept"] >= 100]
    if wild:
        lines.append(
            f"note: photos of {some(wild)} vary as much as whole scenes: a GAN learns aligned faces far sooner"
        )
    return "\n".join(lines)


def reasons_in_words(summary: dict[str, Any]) -> str:
    """Counts of rejected photos by reason, most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(summary["reasons"]).most_common())


def why_none_is_left(records: pa.Table, summary: dict[str, Any]) -> str:
    """Where all photos went, and what is wrong with most of those that can't be read."""
    aside = [f"{count:,} left aside ({reason})" for reason, count in summary["ignored_because"].items()]
    words = ", ".join([*([reasons_in_words(summary)] if summary["reasons"] else []), *aside])
    unreadable = records.filter(pc.equal(records["reason"], "unreadable"))["detail"].to_pylist()
    ailment = Counter(filter(None, unreadable)).most_common(1)
    return f"{words}; {ailment[0][1]:,} of them: {ailment[0][0]}" if ailment else words


def rejected(records: pa.Table, listing: Listing) -> pa.Table:
    """The content of rejected.parquet."""
    chosen = records.filter(pc.is_valid(records["reason"]))
    table = chosen.select(["path", "reason", "score", "detail", "label"])
    inputs = pa.array([source.address for source in listing.sources], pa.string())
    return table.append_column("input", inputs.take(whole(chosen["source"])))


def write(
    output: str, records: pa.Table, listing: Listing, summary: dict[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Write report.json, rejected.parquet and the pictures.

    Args:
        output: address of the data set.
        records: judged, with splits.
        listing: the inputs.
        summary: from `summarize`.
        pictures: PNG files by name.

    Raises:
        RayganError: the output can't be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(rejected(records, listing), sink, compression="zstd")
    storage.write_bytes(storage.join(output, REJECTED), sink.getvalue().to_pybytes())
    storage.write_json(storage.join(output, REPORT), summary)
    for name, content in pictures.items():
        storage.write_bytes(storage.join(output, PICTURES, name), content)


def _conflicts(records: pa.Table) -> int:
    """Number of rejected photos whose label is not that of the photo they repeat."""
    paired = records.filter(pc.is_valid(records["partner"]))
    others = records["label"].take(paired["partner"])
    return int(pc.sum(pc.not_equal(paired["label"], others)).as_py() or 0)


def _labels(records: pa.Table) -> dict[str, dict[str, int]]:
    seen = records.filter(pc.invert(records["ignored"]))
    found = {
        "seen": counts(seen["label"]),
        "rejected": counts(seen["label"].filter(pc.is_valid(seen["reason"]))),
        "kept": counts(seen["label"].filter(pc.is_null(seen["reason"]))),
    } | {
        split: counts(seen["label"].filter(pc.equal(seen["split"], split).fill_null(False)))
        for split in ("train", "validation")
    }
    names = ("seen", "kept", "rejected", "train", "validation")
    return {label: {name: found[name].get(label, 0) for name in names} for label in sorted(found["seen"])}
