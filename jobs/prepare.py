#!/usr/bin/env python
"""Clean folders of photos and write them as shards to train on, with Ray Data.

  python jobs/prepare.py --input photos --output shards --image-size 64

Class folders, names such as cat.123.jpg, Parquet files with an image column, and with --label any folder of
one class. The output gets the shards, report.json, rejected.parquet (every rejected photo, why, and by what
measure) and pictures of what was kept and what was not. A job that was killed goes on with the same command.
"""

from raygan.cli import run_job
from raygan.data.settings import PrepareSettings


def main(settings: PrepareSettings) -> None:
    from raygan.data.prepare import prepare

    prepare(settings)


if __name__ == "__main__":
    run_job(PrepareSettings, main, doc=__doc__)
