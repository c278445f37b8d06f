"""Settings that jobs share (storage and tracking, workers), and those of jobs without a room of their own."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from raygan.addresses import password, with_absolute_file
from raygan.settings import Address, Settings, Switch, option


def _worker_range(value: Any) -> int | tuple[int, int]:
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(":")
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):  # TRUE in a YAML file, too
        raise ValueError("must be a number or a range such as 1:8") from None
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise ValueError("must be at least 1 or a range such as 1:8")
    return numbers[0] if len(set(numbers)) == 1 else (numbers[0], numbers[-1])


#: A number of workers, or the minimum and the maximum.
WorkerRange = Annotated[int | tuple[int, int], BeforeValidator(_worker_range)]


def _tracking_uri(uri: str) -> str:
    if uri.startswith(("http://", "https://")) and password(uri):
        raise ValueError(
            "must not contain a password, which logs and records would show: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return with_absolute_file(uri)


#: MLflow's address. A relative path to a SQLite file is made absolute.
TrackingUri = Annotated[str, AfterValidator(_tracking_uri)]


class StorageSettings(Settings):
    """Where things live: a place for files and an address for MLflow."""

    group: ClassVar[str] = "storage and tracking"

    storage: Address = option(
        None,
        "folder for runs, checkpoints and, by default, MLflow's records; RAYGAN_STORAGE sets the default",
        default_factory=lambda: os.environ.get("RAYGAN_STORAGE") or "~/raygan",
        validate_default=True,
    )
    tracking_uri: TrackingUri | None = option(
        None,
        "MLflow tracking address; by default MLFLOW_TRACKING_URI, or a SQLite file in the storage folder",
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or None,
        validate_default=True,
        repr=False,  # a database's address may contain a password, and Ray logs what it passes on
    )
    experiment: str = option("raygan", "MLflow experiment of the run")
    system_metrics: bool = option(
        False, "record in MLflow how busy the job's machine is: cores, memory, disk, network, GPUs"
    )


#: Settings of `StorageSettings` that only a job with a run of its own needs.
OF_RUNS = frozenset({"experiment", "system_metrics"})

#: When a new version gets the serving alias of its registered model.
Promotion = Annotated[Literal["better", "always", "never"], Switch(on="always", off="never")]


class WorkerOptions(Settings):
    """What a training uses of the cluster."""

    group: ClassVar[str] = "cluster"

    num_workers: WorkerRange = option(
        1, "data-parallel training workers (DDP); a range such as 1:8 adapts to the cluster", unit="workers"
    )
    cpus_per_worker: float = option(
        1.0,
        "CPU cores, and threads, per worker; leave cores to other busy programs, since a training waits for its "
        "slowest thread",
        unit="cores",
        gt=0,
    )
    gpu: bool | None = option(None, "give each worker a GPU; by default if the cluster has GPUs or can add GPU nodes")
    max_failures: int = option(
        3, "maximum number of times that failed workers are restarted from the last checkpoint", ge=0
    )

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
        """The minimum number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The maximum number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class ArithmeticOptions(Settings):
    """How convolutions are computed."""

    group: ClassVar[str] = "arithmetic"

    precision: Literal["auto", "fp32", "tf32", "bf16"] = option(
        "auto",
        "precision of convolutions: auto is bf16 where the hardware computes it natively, else fp32; tf32 is a GPU's "
        "fp32 with shorter mantissas",
    )
    deterministic: bool = option(False, "use only deterministic algorithms on a GPU (slower); CPUs always do")


class GradientOptions(Settings):
    """How gradients are summed over workers."""

    group: ClassVar[str] = "cluster"

    gradient_bucket: float = option(
        25.0, "sum gradients over workers in buckets of this size, overlapped with the backward pass", unit="MB", gt=0
    )
    gradient_precision: Literal["fp32", "bf16"] = option(
        "fp32", "precision of gradients on their way between workers; bf16 sends half the bytes"
    )


class BatchNormOptions(Settings):
    """Which images batch norm normalizes over; the numbers depend on it."""

    group: ClassVar[str] = "cluster"

    sync_batch_norm: bool = option(False, "synchronize batch norm across workers, so that their number doesn't matter")


class SubmitSettings(Settings):
    """The settings of `raygan submit`."""

    group: ClassVar[str] = "submission"

    address: str = option(
        None,
        "address of the cluster's dashboard; RAY_API_SERVER_ADDRESS sets the default",
        default_factory=lambda: os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265",
    )
    working_dir: Address = option(None, "checkout to send to the cluster", default_factory=os.getcwd)
    install: bool = option(
        True, "install the checkout and its requirements on the cluster, once; not needed with raygan's own image"
    )
    wait: bool = option(True, "show the job's output, and end with its exit status")
    name: str | None = option(None, "submission id of the job; by default Ray chooses one")


class PromoteSettings(StorageSettings):
    """The settings of `raygan promote`."""

    group: ClassVar[str] = "promotion"
    unlisted: ClassVar[frozenset[str]] = OF_RUNS

    model: str = option(..., "registered version to serve, as NAME/VERSION; with --rollback, only NAME")
    rollback: bool = option(False, "serve the previously served version again")
