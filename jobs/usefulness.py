#!/usr/bin/env python
"""Find out when generated images help a classifier: real only, generated only (CAS), and mixtures, side by side.

  python jobs/usefulness.py --data shards
  python jobs/usefulness.py --data shards --real-sizes 100 1000 --real-fractions 1 0.5 --seeds 5

The last line of standard output is one JSON object: run_id, the folder of table and chart, and the table.
"""

from raygan.classifier.settings import UsefulnessSettings
from raygan.cli import run_job


def main(settings: UsefulnessSettings) -> None:
    from raygan.classifier.usefulness import study

    print(study(settings).to_json())


if __name__ == "__main__":
    run_job(UsefulnessSettings, main, doc=__doc__)
