"""The callback records what Ray Train's workers report."""

import math
import subprocess
import sys

from raygan import tracking
from raygan.tracking.callback import MLflowCallback


def test_the_callback_records_rank_0_and_failures(settings):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        callback = MLflowCallback(run.spool, step="images")
        callback.after_report(None, [{"images": 64, "loss": 0.5, "note": "text"}, {"images": 64, "loss": 9.0}], None)
        callback.after_report(None, [{"loss": math.inf}], None)  # without a step, it only brings a checkpoint
        callback.after_exception(None, {1: ValueError("Traceback\nout of memory")})
    record = run.client.get_run(run.id).data
    assert record.metrics == {"images": 64.0, "loss": 0.5}
    assert "not_finite" not in record.tags
    assert record.tags["failure_1"] == "rank 1: out of memory"


def test_what_runs_beside_a_training_does_not_wait_for_mlflow_to_be_imported():
    """The callbacks of Ray Train's controller, and the task that measures checkpoints."""
    code = "import sys, raygan.tracking.callback, raygan.training.monitor; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
