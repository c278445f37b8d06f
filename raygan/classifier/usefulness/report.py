"""The study's table and chart, for the terminal, storage and MLflow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from raygan import charts, tracking
from raygan.classifier.usefulness.statistics import Row
from raygan.runtime import storage


def publish(
    rows: Sequence[Row], diverged: Sequence[str], folder: str, log: tracking.Run, photos: str, step: int
) -> None:
    """Print the table, and write it and the chart to storage and MLflow.

    Args:
        rows: of the table, at least one.
        diverged: see `raygan.classifier.usefulness.statistics.diverged_kinds`.
        folder: the study's, in storage.
        log: the study's run in MLflow.
        photos: number of validation photos, in words: it may differ by the size of the real set.
        step: of the metrics. It must grow from one publication to the next; the number of trainings may not, since
            the grid can change.
    """
    text = format_table(rows, photos, diverged)
    print(text, flush=True)
    files = {
        "table.csv": _csv(rows).encode(),
        "table.txt": (text + "\n").encode(),
        "usefulness.png": _chart(rows, photos),
    }
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
        log.log_bytes(content, name)
    log.log_metrics({_metric(row): row.accuracy for row in rows}, step)


def format_table(rows: Sequence[Row], photos: str, diverged: Sequence[str] = ()) -> str:
    """The table for a terminal, followed by the effect of generated images at each size."""
    width = max(len(row.mixture) for row in rows)
    lines = [f"{'training set':{width}}   real  generated  passes  accuracy"]
    lines += [
        f"{row.mixture:{width}} {row.real:6,} {row.generated:10,} {row.passes:7.1f}  {row.accuracy:.1%}"
        + (f" ± {row.deviation:.1%}" if row.trainings > 1 else "")
        + (f", {row.diverged} diverged" if row.diverged else "")
        for row in rows
    ]
    lines += diverged
    most = max(row.trainings for row in rows)
    lines.append(
        f"on {photos} photos that neither classifier nor generator saw; "
        f"± is the standard deviation over up to {most} trainings"
    )
    for row in rows:
        if row.gain is not None:
            lines.append(f"{row.generated:,} generated beside {row.real:,} real: {row.gain:+.1%}{_verdict(row)}")
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    if row.gain is None or row.interval is None:
        return ", from one training each: more --seeds would tell"
    low, high = row.gain - row.interval, row.gain + row.interval
    verdict = ", helps" if low > 0 else ", hurts" if high < 0 else ""  # an interval around zero decides nothing
    return f" (95 % interval {low:+.1%} to {high:+.1%}){verdict}"


def _csv(rows: Sequence[Row]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(rows[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return table.getvalue()


def _chart(rows: Sequence[Row], photos: str) -> bytes:
    lines: dict[str, list[tuple[int, float, float]]] = {}
    level = {}
    for row in rows:
        if row.real:
            lines.setdefault(row.mixture, []).append((row.real, row.accuracy, row.deviation))
        else:
            level[row.mixture] = row.accuracy, row.deviation
    return charts.study(lines, level, f"accuracy on {photos} unseen real photos")


def _metric(row: Row) -> str:
    """A row's name in MLflow."""
    if not row.real:
        return "cas"
    return f"accuracy/real{row.real}" + (f"_generated{row.generated}" if row.generated else "")
