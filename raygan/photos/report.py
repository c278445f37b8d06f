"""What `prepare` did, for people and programs: report.json, rejected.parquet.

report.json:

    seen, kept, rejected, ignored   counts of files (of Parquet inputs: rows); kept + rejected + ignored = seen
    reasons                         rejected photos by reason
    ignored_because                 files left aside by kind
    labels                          for each label: seen, kept, rejected, train, validation
    label_conflicts                 duplicates and near-duplicates whose label differs from the photo kept
    inputs                          address and layout of each input

rejected.parquet: a row for each rejected photo: `path` relative to its input, `reason`, `score` (the measure
that the reason is about; null if there is none), `detail`, `label`, `input`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygan import storage
from raygan.photos.sources import Listing

REPORT = "report.json"
REJECTED = "rejected.parquet"


def summarise(records: pa.Table, listing: Listing) -> dict[str, Any]:
    """The content of report.json from judged records and the listing."""
    reasons = Counter(reason for reason in records["reason"].to_pylist() if reason)
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
        "label_conflicts": sum("labelled" in detail for detail in records["detail"].to_pylist()),
        "inputs": [
            {"address": source.address, "layout": layout}
            for source, layout in zip(listing.sources, listing.layouts, strict=True)
        ],
    }


def in_words(summary: dict[str, Any]) -> str:
    """The report in a line or two."""
    counts = ", ".join(f"{summary[name]:,} {name}" for name in ("seen", "kept", "rejected", "ignored"))
    reasons = reasons_in_words(summary)
    return f"{counts}\nrejected: {reasons}" if reasons else counts


def reasons_in_words(summary: dict[str, Any]) -> str:
    """The rejections by reason, most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(summary["reasons"]).most_common())


def rejected(records: pa.Table, listing: Listing) -> pa.Table:
    """The content of rejected.parquet."""
    chosen = records.filter(pc.is_valid(records["reason"]))
    table = chosen.select(["path", "reason", "score", "detail", "label"])
    inputs = [listing.sources[number].address for number in chosen["source"].to_pylist()]
    return table.append_column("input", pa.array(inputs, pa.string()))


def write(output: str, records: pa.Table, listing: Listing, summary: dict[str, Any]) -> None:
    """Write report.json and rejected.parquet. Raises RayganError if the output can't be written."""
    sink = pa.BufferOutputStream()
    pq.write_table(rejected(records, listing), sink, compression="zstd")
    storage.write_bytes(storage.join(output, REJECTED), sink.getvalue().to_pybytes())
    storage.write_json(storage.join(output, REPORT), summary)


def _labels(records: pa.Table) -> dict[str, dict[str, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    columns = (records[name].to_pylist() for name in ("label", "ignored", "reason", "split"))
    for label, ignored, reason, split in zip(*columns, strict=True):
        if not ignored:
            counts[label, "seen"] += 1
            counts[label, "rejected" if reason else "kept"] += 1
            counts[label, split or ""] += 1
    names = ("seen", "kept", "rejected", "train", "validation")
    return {label: {name: counts[label, name] for name in names} for label in sorted({key[0] for key in counts})}
