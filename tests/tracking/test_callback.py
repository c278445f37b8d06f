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


def test_processes_do_not_wait_for_imports_that_they_do_not_need():
    """The driver of `prepare`, Ray Train's controllers with their callbacks and loops, and the tasks that measure."""
    code = """
import sys
import raygan.data.prepare
assert not {"torch", "ray.train", "mlflow"} & set(sys.modules)
import raygan.classifier.worker, raygan.evaluation.collect, raygan.tracking.callback, raygan.training.worker
import raygan.training.monitor
slow = {"mlflow", "torchvision", "torch._dynamo", "torchmetrics", "torch_fidelity", "timm", "matplotlib"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
