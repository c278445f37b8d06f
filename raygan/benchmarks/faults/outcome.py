"""What a drill finds, and the table that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygan.benchmarks.faults.harness import Rehearsal, Stage

_HEADINGS = ("what", "new work after", "done again", "what came out")


@dataclass
class Found:
    """What a drill found.

    checks: what must hold, and whether it does. back_after: seconds from the fault, or from the command that goes on
    after it, to the first work that is new. again: how much was done a second time, and `unit`: of what. notes: what
    else was measured, in words. left_out: why the drill can't be run here.
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
    """about: what is done, in a line. rehearsals: undisturbed jobs whose work it goes on from or compares with."""

    about: str
    run: Callable[[Stage], Found]
    rehearsals: tuple[Rehearsal, ...] = ("faces",)


def line(name: str, row: Mapping[str, Any]) -> str:
    """A drill in a line of text. row: of the JSON, as are those of `table`."""
    _, back, again, came_out = _cells(row)
    return f"{name:11} {back or '-':>8}  {again or '-':>22}  {came_out}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The drills in Markdown."""
    cells = [_HEADINGS, ("---",) * len(_HEADINGS), *(_cells(row) for row in rows.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if row["left_out"]:
        return row["about"], "", "", f"left out: {row['left_out']}"
    back = "" if row["back_after"] is None else f"{row['back_after']:.1f} s"
    again = "" if row["again"] is None else f"{row['again']:,} {row['unit']}" if row["again"] else "nothing"
    checks = [text if right else f"**not** {text}" for text, right in row["checks"].items()]
    return row["about"], back, again, "; ".join([*checks, *row["notes"]])
