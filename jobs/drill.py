#!/usr/bin/env python
"""Break things while raygan works, and see what is lost: nodes, workers, the controller, MLflow, the disk.

  python jobs/drill.py
  python jobs/drill.py --drills worker node
  python jobs/drill.py --short

Runs on this machine, with Ray nodes and a training of its own; nothing else should use Ray here meanwhile.
"""

from pathlib import Path

from raygan.benchmarks.settings import DrillSettings
from raygan.cli import run_job


def main(settings: DrillSettings) -> None:
    from raygan.benchmarks.faults.run import drill

    drill(settings, Path(__file__).resolve().parent.parent)


if __name__ == "__main__":
    run_job(DrillSettings, main, doc=__doc__)
