"""`jobs/drill.py`: run the drills one after another and print what was lost."""

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
from raygan.benchmarks.faults.outcome import Outcome, line, table
from raygan.benchmarks.faults.scenarios import DRILLS
from raygan.benchmarks.results import checkout, machine, write_json
from raygan.benchmarks.settings import DrillSettings
from raygan.errors import RayganError, last_line


def drill(settings: DrillSettings) -> dict[str, Any]:
    """Run the drills, print a table, write JSON if asked, and return the numbers.

    Raises:
        RayganError: a check failed. The remaining drills run first.
    """
    # Ray heeds these whatever address it is given; and the drills must neither record elsewhere nor need a token.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "RAYGAN_TOKEN"):
        os.environ.pop(name, None)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="raygan-drill-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder), checkout(), SHORT if settings.short else Length())
        names: Collection[str] = settings.drills or DRILLS
        baselines = sorted({each for name in names for each in DRILLS[name].baselines})
        print(f"undisturbed: {', '.join(baselines) or 'nothing'}", file=sys.stderr)
        stage.make_baselines(baselines)
        for name in names:
            began = time.monotonic()
            print(f"{name}: {DRILLS[name].about}", file=sys.stderr)
            try:
                outcome = DRILLS[name].run(stage)
            except Exception as error:  # Ray's and MLflow's too: a drill that stumbles must not end the others
                print(traceback.format_exc(), file=sys.stderr)
                outcome = Outcome(checks={last_line(error): False})
            outcome.seconds = time.monotonic() - began
            rows[name] = {"about": DRILLS[name].about, **asdict(outcome), "right": outcome.right}
            print(line(name, rows[name]), flush=True)
    result = {"machine": machine(), "length": asdict(stage.length), "drills": rows}
    print(f"\n{table(rows)}", end="", flush=True)
    write_json(settings.json_file, result)
    wrong = [name for name, row in rows.items() if not row["right"]]
    if wrong:
        raise RayganError(f"checks failed in {', '.join(wrong)}, see above")
    return result
