#!/usr/bin/env python
"""Train a face GAN on prepared shards with Ray Train, log it to MLflow and register the generator.

  python jobs/train.py --data shards --preset quick --label cat --num-workers 2

The last line of standard output is one JSON object: run_id, model, checkpoint and the final metrics.
"""

from raygan.cli import run_job
from raygan.training.settings import TrainSettings


def main(settings: TrainSettings) -> None:
    from raygan.training.train import train

    print(train(settings).to_json())


if __name__ == "__main__":
    run_job(TrainSettings, main, doc=__doc__)
