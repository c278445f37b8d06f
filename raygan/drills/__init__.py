"""Fault drills: real jobs on several Ray nodes of this machine, what is done to them, and what that costs.

The mental model:

1. `stage` sets the scene: Ray nodes with processes of their own (Ray's cluster utilities), jobs started as users start
   them, and eyes on what they leave in storage and in MLflow.
2. `faults` are the drills. Each starts a job, waits until it works, breaks something with SIGKILL, a drain or a full
   disk, and compares what came out with what an undisturbed job left: weights and shards to the last bit where
   that is promised, MLflow's metrics without gaps or doubles always.
3. `drill` runs them one after another and prints what was lost. A check that fails fails the command.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raygan.benchmarks.results import machine, write_json
from raygan.config import DrillSettings
from raygan.drills.faults import DRILLS, Found
from raygan.drills.stage import Stage
from raygan.errors import RayganError


def drill(settings: DrillSettings) -> dict[str, Any]:
    """Run the drills, print a table, write JSON if asked, and return the numbers.

    Raises RayganError if a job didn't come out as it should; the others are drilled all the same.
    """
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="raygan-drill-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder))
        print("preparing faces and an undisturbed training", file=sys.stderr)
        stage.rehearse()
        for name in settings.drills or DRILLS:
            began = time.monotonic()
            print(f"{name}: {DRILLS[name].about}", file=sys.stderr)
            try:
                found[name] = DRILLS[name].run(stage)
            except RayganError as error:
                found[name] = Found(checks={str(error): False})
            found[name].seconds = time.monotonic() - began
            print(_line(name, found[name]), flush=True)
    result = {"machine": machine(), "drills": {name: asdict(each) for name, each in found.items()}}
    write_json(settings.json_file, result)
    wrong = [name for name, each in found.items() if not each.right]
    if wrong:
        raise RayganError(f"{', '.join(wrong)}: not as it should be, see above")
    return result


def _line(name: str, found: Found) -> str:
    if found.left_out:
        return f"{name:11} left out: {found.left_out}"
    back = f"back after {found.back_after:5.1f} s" if found.back_after is not None else " " * 18
    again = f"{1000 * found.again_kimg:6.0f} images again" if found.again_kimg is not None else " " * 19
    checks = "; ".join(f"{text}: {'yes' if right else 'NO'}" for text, right in found.checks.items())
    return f"{name:11} {back}  {again}  {checks}"
