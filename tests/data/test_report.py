"""What `prepare` says of a data set."""

from __future__ import annotations

from raygan.data import report


def test_thousands_of_labels_are_said_in_a_few_lines():
    labels = [f"person_{number:04}" for number in range(5_000)]
    summary = {
        **{"seen": 500_000, "kept": 500_000, "rejected": 0, "ignored": 0, "reasons": {}},
        "labels": {label: {"kept": 100} for label in labels},
        "outliers": {label: {"skipped": "too few"} for label in labels[1:]},
        "variation": dict.fromkeys(labels, 0.98),
    }
    lines = report.in_words(summary).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 400
    assert lines[1].endswith("person_0012 and 4,987 more labels, with too few photos for statistics")
    assert all("person_0011" in line for line in lines[1:])
