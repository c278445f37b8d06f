#!/usr/bin/env python
"""Search learning rates and z_dim (or other settings) with Ray Tune; every trial is a real training.

  python jobs/tune.py --data shards --preset quick --label cat --trials 12 --trial-kimg 30
  python jobs/tune.py --data shards --label cat --space generator_lr=1e-5..1e-3 z_dim=64,128 --search tpe

The full length of a training (--epochs or --kimg) counts for --train-best only. The last line of standard output is
one JSON object: run_id, best, kid, trials, settings_file and pictures.
"""

from raygan.cli import run_job
from raygan.tuning.settings import TuneSettings


def main(settings: TuneSettings) -> None:
    from raygan.tuning.tune import tune

    print(tune(settings).to_json())


if __name__ == "__main__":
    run_job(TuneSettings, main, doc=__doc__)
