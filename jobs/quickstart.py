#!/usr/bin/env python
"""Prepare, train and serve in one command: on faces that raygan draws itself, or on your photos.

  python jobs/quickstart.py
  python jobs/quickstart.py --input photos --label cat --no-serve

Run it again and it goes on where it stopped.
"""

from raygan.cli import run_job
from raygan.quickstart.settings import QuickstartSettings


def main(settings: QuickstartSettings) -> None:
    from raygan.quickstart.quickstart import quickstart

    quickstart(settings)


if __name__ == "__main__":
    run_job(QuickstartSettings, main, doc=__doc__)
