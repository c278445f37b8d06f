#!/usr/bin/env python
"""Break things while raygan trains, and see what is lost: SIGKILL to a training worker, and to Ray Train's controller.

  python jobs/drill.py
  python jobs/drill.py --drills worker

Runs on this machine, with a Ray cluster and trainings of its own; nothing else should use Ray here meanwhile.
"""

from raygan.cli import run_job
from raygan.config import DrillSettings


def main(settings: DrillSettings) -> None:
    from raygan.drills import drill

    drill(settings)


if __name__ == "__main__":
    run_job(DrillSettings, main, doc=__doc__)
