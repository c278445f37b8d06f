#!/usr/bin/env python
"""Run a job of this checkout on a cluster, and follow it from here.

  python jobs/submit.py --address http://HEAD:8265 -- train.py --data s3://bucket/shards --preset best-64 --label cat
  python jobs/submit.py --address http://HEAD:8265 --no-install -- tune.py --data s3://bucket/shards --trials 12

What stands after -- is a file of jobs/ with its flags. The exit status is the job's. Ctrl-C leaves it running.
"""

import sys

from raygan.cli import run_job
from raygan.runtime.settings import SubmitSettings

if __name__ == "__main__":
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, command = sys.argv[1:at], sys.argv[at + 1 :]

    def main(settings: SubmitSettings) -> None:
        from raygan.runtime.submit import submit

        sys.exit(submit(settings, command))

    run_job(SubmitSettings, main, doc=__doc__, argv=own)
