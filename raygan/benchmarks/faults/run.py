"""Fault drills: real jobs on several Ray nodes of this machine, what is done to them, and what that costs.

The mental model:

1. `stage` sets the scene: Ray nodes with processes of their own (Ray's cluster utilities), jobs started as users start
   them, and eyes on what they leave in storage and in MLflow.
2. `faults` are the drills, and `serving` that of the service. Each starts a job, waits until it works, breaks something
   with SIGKILL, a drain or a full disk, and compares what came out with what an undisturbed job left: weights and
   shards to the last bit where that is promised, MLflow's metrics without gaps or doubles always.
3. `drill` runs them one after another and prints what was lost, as a table at the end (`found`). A check that fails
   fails the command.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raygan.benchmarks.faults.harness import SHORT, Length, Stage
from raygan.benchmarks.faults.outcome import Found, line, table
from raygan.benchmarks.faults.scenarios import DRILLS
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import DrillSettings
from raygan.errors import RayganError, last_line


def drill(settings: DrillSettings, checkout: Path) -> dict[str, Any]:
    """Run the drills, print a table, write JSON if asked, and return the numbers. checkout: where jobs/ is.

    Raises RayganError if a job didn't come out as it should; the others are drilled all the same.
    """
    # Ray would look there whatever address it is given; its nodes and the service are to record here and ask nobody.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "RAYGAN_TOKEN"):
        os.environ.pop(name, None)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="raygan-drill-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder), checkout, SHORT if settings.short else Length())
        names: Collection[str] = settings.drills or DRILLS
        rehearsals = sorted({each for name in names for each in DRILLS[name].rehearsals})
        print(f"undisturbed: {', '.join(rehearsals) or 'nothing'}", file=sys.stderr)
        stage.rehearse(rehearsals)
        for name in names:
            began = time.monotonic()
            print(f"{name}: {DRILLS[name].about}", file=sys.stderr)
            try:
                found = DRILLS[name].run(stage)
            except Exception as error:  # Ray's and MLflow's too: one drill that stumbles must not end the others
                print(traceback.format_exc(), file=sys.stderr)
                found = Found(checks={last_line(error): False})
            found.seconds = time.monotonic() - began
            rows[name] = {"about": DRILLS[name].about, **asdict(found), "right": found.right}
            print(line(name, rows[name]), flush=True)
    result = {"machine": machine(), "length": asdict(stage.length), "drills": rows}
    print(f"\n{table(rows)}", end="", flush=True)
    write_json(settings.json_file, result)
    wrong = [name for name, row in rows.items() if not row["right"]]
    if wrong:
        raise RayganError(f"{', '.join(wrong)}: not as it should be, see above")
    return result
