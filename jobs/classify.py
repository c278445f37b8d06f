#!/usr/bin/env python
"""Train GoogLeNet to tell labels apart, on real photos, generated images or both, and register it.

  python jobs/classify.py --data shards --num-workers 2
  python jobs/classify.py --data shards --real-fraction 0      (generated only: the accuracy is the CAS)

The last line of standard output is one JSON object: run_id, model and the metrics on the validation photos.
"""

from raygan.classifier.settings import ClassifySettings
from raygan.cli import run_job


def main(settings: ClassifySettings) -> None:
    from raygan.classifier.classify import classify

    print(classify(settings).to_json())


if __name__ == "__main__":
    run_job(ClassifySettings, main, doc=__doc__)
