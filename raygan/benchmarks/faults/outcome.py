"""What a drill found, and the table made of all findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raygan.benchmarks.faults.harness import Baseline, Stage

_HEADINGS = ("what", "new work after", "done again", "what came out")


@dataclass
class Outcome:
    """What a drill found.

    Attributes:
        checks: whether each thing holds that must.
        back_after: seconds from the fault, or from the command that resumes, to the first new work.
        again: how much work was done a second time.
        unit: what `again` counts.
        notes: further measurements, in words.
        left_out: why the drill can't run here; empty if it ran.
        seconds: how long the drill took.
    """

    checks: dict[str, bool] = field(default_factory=dict)
    back_after: float | None = None
    again: int | None = None
    unit: str = "images"
    notes: list[str] = field(default_factory=list)
    left_out: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return all(self.checks.values())


@dataclass(frozen=True)
class Drill:
    """A drill.

    Attributes:
        about: what it breaks, in a line.
        run: breaks it, and finds what came out.
        baselines: undisturbed jobs that it builds on or compares with.
    """

    about: str
    run: Callable[[Stage], Outcome]
    baselines: tuple[Baseline, ...] = ("faces",)


def line(name: str, row: Mapping[str, Any]) -> str:
    """One drill in a line of text, from its row of the JSON."""
    _, back, again, came_out = _cells(row)
    return f"{name:11} {back or '-':>8}  {again or '-':>22}  {came_out}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """All drills as a Markdown table, from their rows of the JSON."""
    cells = [_HEADINGS, ("---",) * len(_HEADINGS), *(_cells(row) for row in rows.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if row["left_out"]:
        return row["about"], "", "", f"left out: {row['left_out']}"
    back = "" if row["back_after"] is None else f"{row['back_after']:.1f} s"
    again = "" if row["again"] is None else f"{row['again']:,} {row['unit']}" if row["again"] else "nothing"
    checks = [text if right else f"**not** {text}" for text, right in row["checks"].items()]
    return row["about"], back, again, "; ".join([*checks, *row["notes"]])
