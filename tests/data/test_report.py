"""What `prepare` says of a data set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raygan.data import chunks, report
from raygan.data.duplicates import Verdicts
from raygan.data.listing import SCHEMA, Listing


def test_conflicts_of_labels_are_counted_whatever_the_photos_are_called():
    paths = ["unlabelled/a.jpg", "unlabelled/a copy.jpg", "b.jpg", "b copy.jpg", "c.jpg"]
    labels, hashes = ["cat", "cat", "cat", "dog", "dog"], ["0" * 8, "0" * 8, "1" * 8, "1" * 8, "2" * 8]
    about = {"width": 64, "height": 64, "phash": bytes(8), "ignored": False}
    rows = [
        {**about, "path": path, "label": label, "hash": pixels}
        for path, label, pixels in zip(paths, labels, hashes, strict=True)
    ]
    verdicts = Verdicts(pa.Table.from_pylist(rows, chunks.RECORD))
    verdicts.reject_duplicates()
    summary = report.summarize(verdicts.table(np.empty((0, 3), int), 0.0), Listing([], SCHEMA.empty_table()))
    assert summary["reasons"] == {"duplicate": 2}
    assert summary["label_conflicts"] == 1
    said = report.in_words(summary | {"outliers": {}, "variation": {}})
    assert "note: 1 repeated a photo of another label, which is kept; rejected.parquet names both" in said
    assert "is left" not in said


def test_a_label_without_a_photo_is_named():
    rows = [
        {"path": f"{label}.jpg", "label": label, "hash": pixels, "width": 64, "height": 64, "ignored": False}
        | {"reason": None if pixels else "no_face", "phash": bytes(8) if pixels else b""}
        for label, pixels in (("cat", "0" * 8), ("dog", ""))
    ]
    records = Verdicts(pa.Table.from_pylist(rows, chunks.RECORD)).table(np.empty((0, 3), int), 0.0)
    summary = report.summarize(records, Listing([], SCHEMA.empty_table())) | {"outliers": {}, "variation": {}}
    assert report.in_words(summary).splitlines()[-1] == "note: no photo of dog is left"


def test_thousands_of_labels_are_said_in_a_few_lines():
    labels = [f"person_{number:04}" for number in range(5_000)]
    summary = {
        **{"seen": 500_000, "kept": 500_000, "rejected": 0, "ignored": 0, "reasons": {}, "label_conflicts": 0},
        "labels": {label: {"kept": 100} for label in labels},
        "outliers": {label: {"skipped": "too few"} for label in labels[1:]},
        "variation": dict.fromkeys(labels, 0.98),
    }
    lines = report.in_words(summary).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 400
    assert lines[1].endswith("person_0012 and 4,987 more labels, with too few photos for statistics")
    assert all("person_0011" in line for line in lines[1:])
