#!/usr/bin/env python
"""Draw many samples from a registered generator or a checkpoint, on the whole cluster.

  python jobs/sample.py --label cat --n 10000 --output samples
  python jobs/sample.py --model raygan-generator-cat/3 --format parquet --output samples

A job that was interrupted goes on where it stopped. The last line of standard output is one JSON object: model,
output and n.
"""

from raygan.cli import run_job
from raygan.sampling.settings import SampleSettings


def main(settings: SampleSettings) -> None:
    from raygan.sampling.sample import sample

    print(sample(settings).to_json())


if __name__ == "__main__":
    run_job(SampleSettings, main, doc=__doc__)
