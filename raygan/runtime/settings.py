"""Settings of storage, tracking, workers and submission, which every job shares."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, model_validator

from raygan.addresses import absolute, password
from raygan.settings import Address, Settings, option


def _worker_range(value: Any) -> int | tuple[int, int]:
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(":")
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):  # TRUE in a YAML file, too
        raise ValueError("must be a number, or a range such as 1:8") from None
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise ValueError("must be at least 1, or a range such as 1:8")
    return numbers[0] if len(set(numbers)) == 1 else (numbers[0], numbers[-1])


#: A number of workers, or the fewest and the most.
WorkerRange = Annotated[int | tuple[int, int], BeforeValidator(_worker_range)]


_SQLITE = "sqlite:///"


def _tracking_uri(uri: str) -> str:
    if uri.startswith(("http://", "https://")) and password(uri):
        raise ValueError(
            "must not carry a password, which logs and records would show: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    file = uri.removeprefix(_SQLITE)
    return _SQLITE + os.path.abspath(file) if file != uri else uri


#: MLflow's address. The file of a relative one is made absolute.
TrackingUri = Annotated[str, AfterValidator(_tracking_uri)]


class StorageSettings(Settings):
    """Where things live: one place for files, one address for MLflow."""

    group: ClassVar[str] = "storage and tracking"

    storage: Address = option(
        None,
        "folder for runs, checkpoints and, by default, MLflow's records; RAYGAN_STORAGE sets the default",
        default_factory=lambda: absolute(os.environ.get("RAYGAN_STORAGE") or "~/raygan"),
        validate_default=True,
    )
    tracking_uri: TrackingUri | None = option(
        None,
        "MLflow tracking address; by default MLFLOW_TRACKING_URI, or a SQLite file under the storage folder",
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or None,
        validate_default=True,
        repr=False,  # a database's may carry a password, and Ray shows what it passes on
    )
    experiment: str = option("raygan", "MLflow experiment that the run belongs to")


class WorkerOptions(Settings):
    """What the training takes from the cluster."""

    group: ClassVar[str] = "cluster"

    num_workers: WorkerRange = option(
        1, "data-parallel training workers (DDP); a range such as 1:8 follows what the cluster has", unit="workers"
    )
    cpus_per_worker: float = option(1.0, "CPU cores reserved for each worker, also its threads", unit="cores", gt=0)
    gpu: bool | None = option(None, "give each worker a GPU; by default if the cluster has enough of them")
    max_failures: int = option(3, "times a failed worker group is started again from the last checkpoint", ge=0)

    @model_validator(mode="after")
    def _has_work_for_all(self) -> WorkerOptions:
        batch = getattr(self, "batch_size", None)
        if batch is not None and batch < self.most_workers:
            raise ValueError(
                f"batch_size ({batch}) is smaller than num_workers ({self.most_workers}): "
                f"every worker needs at least one image of each batch"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """Workers that the run needs at least."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that the run takes at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class BatchNormOptions(Settings):
    """What batch norm takes for its batch, which the numbers depend on."""

    group: ClassVar[str] = "cluster"

    sync_batch_norm: bool = option(
        False, "batch norm takes the batch of all workers together, so that their number doesn't matter"
    )


class SubmitSettings(Settings):
    """Everything `jobs/submit.py` can be told."""

    group: ClassVar[str] = "submission"

    address: str = option(
        None,
        "address of the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, or this machine's",
        default_factory=lambda: os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265",
    )
    working_dir: Address = option(None, "checkout that is sent there", default_factory=os.getcwd)
    install: bool = option(True, "install the checkout and all that it needs there, once; not needed in its own image")
    wait: bool = option(True, "show what the job says, and end with its exit status")
    name: str | None = option(None, "the job's submission id; by default Ray makes one up")
