"""MLflow for Ray Train V2: a `UserCallback` that records each report of a training.

It knows nothing about GANs and can be reused together with `runs` and `outbox`::

    with start_run(settings, "my-run", job="train", params=configuration, run_id=known_id) as run:
        callback = MLflowCallback(run.spool, step="images")
        TorchTrainer(..., run_config=RunConfig(callbacks=[callback])).fit()

The `with` block owns the run: one MLflow run for the training, however often workers or the driver restart, closed with
the right status. The callback runs in Ray Train's controller, which Ray places on the driver's node. It only writes to
the run's spool there, and the driver sends, so neither workers nor the controller import MLflow or wait for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ray.train import UserCallback

from raygan.errors import last_line
from raygan.tracking.spool import Spool


class MLflowCallback(UserCallback):
    """Records the numbers that rank 0 reports, and why workers failed."""

    def __init__(self, spool: Spool, step: str, leave_out: Collection[str] = ()):
        """Set up the callback.

        Args:
            spool: of the run, `Run.spool`.
            step: the reported metric to use as MLflow's step, such as images seen; a report without it is not recorded.
            leave_out: reported metrics not to record.
        """
        self._spool, self._step, self._leave_out = spool, step, frozenset(leave_out)
        self._failures = 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Record a report. Its checkpoint, if any, has been stored by now."""
        if self._step not in metrics[0]:
            return
        values = {name: value for name, value in numbers(metrics[0]).items() if name not in self._leave_out}
        self._spool.put_metrics(values, int(metrics[0][self._step]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tag the run with the workers' failure. Ray Train decides whether the training continues."""
        self._failures += 1
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        reason = last_line(next(iter(worker_exceptions.values()))) if worker_exceptions else "killed"
        self._spool.put_tags({f"failure_{self._failures}": f"rank {ranks}: {reason}"[:500]})


def numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    """The numeric metrics of a report."""
    return {
        name: float(value)
        for name, value in (metrics or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
