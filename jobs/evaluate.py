#!/usr/bin/env python
"""Give generators a report card against real shards: FID, KID, precision, recall, copies, the classifier's view.

  python jobs/evaluate.py --data shards                          (the champion of every label)
  python jobs/evaluate.py --data shards --label cat --model raygan-generator-cat/3 runs/mine/checkpoint_2 --baselines

The last line of standard output is one JSON object: run_id, the report's page and the metrics.
"""

from raygan.cli import run_job
from raygan.evaluation.settings import EvaluateSettings


def main(settings: EvaluateSettings) -> None:
    from raygan.evaluation.evaluate import evaluate

    print(evaluate(settings).to_json())


if __name__ == "__main__":
    run_job(EvaluateSettings, main, doc=__doc__)
