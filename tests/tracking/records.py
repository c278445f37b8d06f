"""What MLflow has recorded."""

from __future__ import annotations

from mlflow import MlflowClient


def steps(client: MlflowClient, run_id: str, name: str) -> list[int]:
    """The steps of a metric."""
    return [metric.step for metric in client.get_metric_history(run_id, name)]
