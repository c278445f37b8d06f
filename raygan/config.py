"""Typed configuration: every setting's meaning, unit, default and range, in one place.

The mental model:

1. Each job has one flat settings class; its fields are the keys of YAML files and the flags of the command
   line (`z_dim` is `--z-dim`), so that a setting has the same name everywhere.
2. A class is composed of small ones by concern; `--help` shows them as groups, and a function that needs
   one concern takes that class.
3. Values come from the class defaults, then the preset, then `--config` files, then flags; later wins.
   `raygan.cli` merges them and pydantic validates the result once. After that settings are frozen objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raygan.addresses import absolute, password
from raygan.errors import ConfigurationError


def option(default: Any, meaning: str, *, unit: str = "", **constraints: Any) -> Any:
    """A pydantic field whose description carries its unit, for `--help`.

    default: ``...`` makes the field required. constraints: pydantic's `ge`, `gt`, `le`, `lt`, or
    `default_factory`.
    """
    text = f"{meaning} ({unit})" if unit else meaning
    if "default_factory" in constraints:
        return Field(description=text, **constraints)
    return Field(default, description=text, **constraints)


def allowed_range(metadata: list[Any]) -> str:
    """A field's bounds in words, such as "1 to 64" or "above 0"; empty where there are none."""
    low = next((f"{m.ge}" for m in metadata if isinstance(m, Ge)), None)
    above = next((f"{m.gt}" for m in metadata if isinstance(m, Gt)), None)
    high = next((f"{m.le}" for m in metadata if isinstance(m, Le)), None)
    below = next((f"{m.lt}" for m in metadata if isinstance(m, Lt)), None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    parts = [
        f"at least {low}" if low is not None else "",
        f"above {above}" if above is not None else "",
        f"at most {high}" if high is not None else "",
        f"below {below}" if below is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _image_size(size: int) -> int:
    if size not in (32, 64, 128, 256):
        raise ValueError(f"must be a power of two from 32 to 256, not {size}")
    return size


ImageSize = Annotated[int, AfterValidator(_image_size)]


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


def _without_secret(address: str) -> str:
    if password(address):
        raise ValueError(
            "must not carry a key, which logs and records would show: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or what else the storage's own tools take, on every node"
        )
    return address


#: A local path or a URI. Paths are made absolute: the processes of a cluster stand in folders of their own.
Address = Annotated[str, AfterValidator(_without_secret), AfterValidator(absolute)]

#: Something by name, by path or by URI.
NameOrAddress = Annotated[str, AfterValidator(_without_secret)]


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


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, numbers are finite, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Heading of the class's fields in `--help`.
    group: ClassVar[str] = "options"

    #: Whether the job goes on, when the same command is given again, with what was interrupted.
    resumes: ClassVar[bool] = False

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values, as YAML files and MLflow have them."""
        return self.model_dump(mode="json")


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


class NetworkOptions(Settings):
    """The generator's and the critic's shape."""

    group: ClassVar[str] = "networks"

    image_size: ImageSize = option(
        64, "side of the square images; must equal the shards'", unit="px: 32, 64, 128 or 256"
    )
    z_dim: int = option(200, "length of the latent vector", ge=1, le=4096)
    width: int = option(
        64, "channels of the block next to the image; deeper blocks have up to 16 times as many", ge=1, le=512
    )
    critic_norm: Literal["instance", "batch", "none"] = option(
        "instance", "normalisation in the critic: per image, over the batch (DCGAN), or none"
    )
    conditional: bool = option(False, "one generator for all labels, told which to draw; without --label")


class ObjectiveOptions(Settings):
    """What is minimised, and how."""

    group: ClassVar[str] = "objective and optimisers"

    objective: Literal["wgan-gp", "dcgan", "r3gan"] = option(
        "wgan-gp", "adversarial objective: Wasserstein with gradient penalty, BCE, or relativistic with R1 and R2"
    )
    batch_size: int = option(64, "images in the global batch, all workers together", unit="images", ge=2)
    n_critic: int = option(5, "critic steps to each generator step", ge=1, le=100)
    generator_lr: float = option(1e-4, "Adam's learning rate of the generator", gt=0, le=1)
    critic_lr: float = option(1e-4, "Adam's learning rate of the critic", gt=0, le=1)
    beta1: float = option(0.0, "Adam's beta 1", ge=0, lt=1)
    beta2: float = option(0.9, "Adam's beta 2", ge=0, lt=1)
    penalty_weight: float = option(10.0, "weight of the gradient penalty (lambda; gamma of r3gan)", ge=0)
    penalty_every: int = option(
        1, "take the penalty every so many critic steps, with its weight multiplied by as many", unit="steps", ge=1
    )
    augment: list[Literal["color", "translation", "cutout"]] = option(
        None, "DiffAugment changes shown to the critic, of reals and fakes alike", default_factory=list
    )
    mirror: bool = option(False, "flip reals left to right at random")
    ema_kimg: float = option(
        10.0,
        "half-life of the generator's moving average (EMA), which is the model users get; 0 gives them the generator",
        unit="thousands of images",
        ge=0,
    )
    ema_ramp: float = option(
        0.05, "the half-life is at most this share of the images seen so far; 0 leaves it fixed", ge=0, le=1
    )
    warmup_kimg: float = option(
        0.0, "both learning rates rise from zero over the first", unit="thousands of images", ge=0
    )
    decay: float = option(
        0.0, "last share of the run over which both learning rates fall to zero; needs --epochs or --kimg", ge=0, le=1
    )
    clip_gradient: float = option(0.0, "longest gradient of either network; 0 clips nothing", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the convolutions; auto takes bf16 where the hardware computes it natively"
    )
    seed: int = option(0, "seed of the weights and of every random draw", ge=0, lt=2**31)


class LengthOptions(Settings):
    """How long a run is, and what happens how often on its way. The clock is images seen."""

    group: ClassVar[str] = "length and cadence"

    epochs: int = option(80, "passes over the photos", unit="epochs", ge=1)
    kimg: float | None = option(None, "length instead of epochs", unit="thousands of images", gt=0)
    minutes: float | None = option(
        None, "stop after so long a training, if the length isn't reached before", unit="minutes", gt=0
    )
    log_every: float | None = option(
        None, "between metrics; by default a hundredth of the run", unit="thousands of images", gt=0
    )
    snapshot_every: float | None = option(
        None, "between sample grids; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    checkpoint_every: float | None = option(
        None, "between checkpoints; by default a twentieth of the run", unit="thousands of images", gt=0
    )
    quality_every: float | None = option(
        None,
        "between measurements of quality (KID, memorisation), which choose the best checkpoint; by default a tenth "
        "of the run and at least four images for each sample, 0 for never",
        unit="thousands of images",
        ge=0,
    )
    quality_samples: int = option(500, "samples that quality is measured on", unit="images", ge=16, le=50_000)
    quality_network: NameOrAddress = option(
        "efficientnet_lite0",
        "feature network of KID: efficientnet_lite0, googlenet (the registered classifier), or a file or folder of "
        "GoogLeNet weights",
    )
    keep_checkpoints: int = option(2, "checkpoints kept: the best by quality, and always the last", ge=1)
    log_checkpoints: Literal["best", "last", "none"] = option(
        "none", "training checkpoint that is copied to MLflow at the end; the generator always is"
    )


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


class TrainSettings(BatchNormOptions, WorkerOptions, LengthOptions, ObjectiveOptions, NetworkOptions, StorageSettings):
    """Everything `jobs/train.py` can be told."""

    group: ClassVar[str] = "run"
    resumes: ClassVar[bool] = True
    presets: ClassVar[tuple[str, ...]] = ("quick", "best-64", "best-128", "wgan-gp-64", "wgan-gp-128", "dcgan-64")

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "train on this label only; by default on all labels together")
    name: str | None = option(None, "name of the run; an interrupted run of the same name is resumed")
    promote: bool = option(True, "point the registered model's serving alias at this run's generator")
    allow_changes: bool = option(False, "resume a run although settings or shards differ from those it began with")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.conditional and self.label is not None:
            raise ValueError(f"conditional draws every label, so label can't be {self.label}: leave one of them out")
        if self.objective != "dcgan" and self.critic_norm == "batch":
            raise ValueError(
                f"critic_norm can't be batch with objective {self.objective}: its penalty is defined per image"
            )
        return self


class SearchOptions(Settings):
    """What is searched, how, and for how long."""

    group: ClassVar[str] = "search"

    space: list[str] = option(
        None,
        "what is searched: NAME=LOW..HIGH (log-uniform) or NAME=A,B,C, of generator_lr, critic_lr, z_dim, "
        "penalty_weight, penalty_every, n_critic, width, batch_size, warmup_kimg, ema_kimg, augment (policies joined "
        "by +, or none)",
        default_factory=lambda: ["generator_lr=3.5e-5..3.5e-3", "critic_lr=1e-5..1e-3", "z_dim=64,128,200,256"],
    )
    trials: int = option(12, "settings tried; the first are the source project's", ge=1, le=10_000)
    trial_kimg: float = option(30.0, "longest training of a trial", unit="thousands of images", gt=0)
    judgements: int = option(
        6, "times in a trial that KID is measured, and the scheduler may stop it", unit="times", ge=1, le=1000
    )
    scheduler: Literal["asha", "median", "pbt", "none"] = option(
        "asha",
        "stops losers early: asynchronous halving, the median rule; or pbt, which copies winners' weights and "
        "changes their learning rates in flight; or none",
    )
    search: Literal["random", "tpe"] = option("random", "where to look next: at random, or Optuna's TPE")
    concurrent: int | None = option(None, "most trials at a time; by default as many as fit the cluster", ge=1)
    train_best: bool = option(False, "train the best settings to the full length at the end")

    @property
    def judged_every(self) -> float:
        """Thousands of images between two measurements of KID."""
        return self.trial_kimg / self.judgements


class TuneSettings(SearchOptions, TrainSettings):
    """Everything `jobs/tune.py` can be told: a training, and what of it is searched."""

    group: ClassVar[str] = "run"


class SampleSettings(StorageSettings):
    """Everything `jobs/sample.py` can be told."""

    group: ClassVar[str] = "samples"
    resumes: ClassVar[bool] = True

    output: Address = option(..., "folder or URI that the samples are written to")
    n: int = option(1000, "samples", unit="images", ge=1)
    label: str | None = option(None, "what to draw; by default what the model draws, if that is one thing")
    model: NameOrAddress | None = option(
        None, "registered model NAME or NAME/VERSION, or a folder with generator.json; by default the label's champion"
    )
    seed: int = option(0, "sample i is the image of seed + i, here as in the service", ge=0, lt=2**31)
    truncation: float = option(1.0, "latents are scaled by it: less is more typical and less varied", gt=0, le=1)
    format: Literal["png", "parquet"] = option("png", "a PNG file a sample, or Parquet files of PNG, label and seed")
    chunk_images: int = option(
        500, "samples that one task draws, and that a killed job draws again at most, per task", unit="images", ge=1
    )


class ServeSettings(StorageSettings):
    """What the service is told by `serve_config.yaml`."""

    group: ClassVar[str] = "service"

    token_file: str | None = option(
        None, "file with the bearer token that requests must carry; without it RAYGAN_TOKEN counts, and then none"
    )
    public: bool = option(False, "serve without a token although the port is open to other machines")
    poll_seconds: float = option(5.0, "how often the registry is asked for new versions", unit="s", gt=0, le=3600)
    threads: int | None = option(
        None, "threads in which a replica computes, each on its own batch; by default its cores", ge=1, le=256
    )
    batch_images: int = option(32, "most images that a thread computes at once", unit="images", ge=1, le=256)
    call_images: int = option(
        128, "most images that the gateway sends a replica in one call", unit="images", ge=64, le=1024
    )
    max_waiting_images: int = option(
        4096, "images that may wait for a model; a request beyond that is answered 503", unit="images", ge=64
    )
    max_draws: int = option(16, "min_confidence: most samples drawn for each one asked for", ge=1, le=64)
    timeout_seconds: float = option(30.0, "time for one request, after which it is answered 503", unit="s", gt=0)
    max_upload_megabytes: float = option(10.0, "biggest uploaded file", unit="MB", gt=0)
    max_request_megabytes: float = option(32.0, "biggest request body", unit="MB", gt=0)
    max_upload_megapixels: float = option(24.0, "most pixels of an upload, judged before decoding", gt=0)
    access_log: bool = option(True, "print a line of JSON for each request")
    revision: str = option("", "anything: `serve deploy` looks for new labels only if its file has changed")


class ServeJobSettings(StorageSettings):
    """Everything `jobs/serve.py` can be told; what the service is told stands in its file."""

    group: ClassVar[str] = "service"

    service: str = option("serve_config.yaml", "Ray Serve's configuration file: host, port, replicas, arguments")


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


class QuickstartSettings(StorageSettings):
    """Everything `jobs/quickstart.py` can be told."""

    group: ClassVar[str] = "quickstart"
    resumes: ClassVar[bool] = True

    input: list[Address] | None = option(None, "folders of your own photos; by default faces that raygan draws itself")
    label: str | None = option(None, "train this label only; by default every label, one generator each")
    epochs: int | None = option(None, "passes over the photos; by default as many as suit their number", ge=1)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    port: int = option(8000, "port that the samples are served on", ge=1, le=65535)
    serve: bool = option(True, "serve samples after training, until Ctrl-C")


class ClassifierOptions(Settings):
    """How GoogLeNet is trained."""

    group: ClassVar[str] = "classifier"

    batch_size: int = option(32, "images in the global batch, all workers together", unit="images", ge=2)
    learning_rate: float = option(1e-3, "AdamW's highest learning rate; it falls linearly to 0", gt=0, le=1)
    weight_decay: float = option(0.05, "AdamW's weight decay", ge=0, le=1)
    warmup: float = option(0.05, "share of the training in which the rate rises from 0", ge=0, lt=1)
    label_smoothing: float = option(0.0, "share of each target that is spread over all labels", ge=0, lt=1)
    auxiliary_weight: float = option(
        0.3, "weight of each of the paper's two auxiliary heads in the loss; 0 leaves them out", ge=0, le=1
    )
    mirror: bool = option(True, "flip images left to right at random")
    shift: float = option(0.0625, "largest random shift, as a share of the side", ge=0, le=0.5)
    ema_ramp: float = option(
        0.05,
        "half-life of the weights' moving average, which is what users get, as a share of the training so far; 0: none",
        ge=0,
        le=1,
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the convolutions; auto takes bf16 where the hardware computes it natively"
    )
    seed: int = option(0, "seed of the weights and of every random draw", ge=0, lt=2**31)


class ClassifySettings(BatchNormOptions, WorkerOptions, ClassifierOptions, StorageSettings):
    """Everything `jobs/classify.py` can be told."""

    group: ClassVar[str] = "run"
    resumes: ClassVar[bool] = True

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, with two labels or more")
    epochs: int = option(20, "passes over the training images", unit="epochs", ge=1)
    patience: int = option(
        10,
        "stop when so many epochs have not lowered the validation loss, but not while the learning rate is high, in "
        "the first half; 0 never stops early",
        unit="epochs",
        ge=0,
    )
    real_fraction: float = option(
        1.0, "share of real photos among the training images: 1 is real only, 0 generated only", ge=0, le=1
    )
    real_images: int | None = option(
        None, "real photos to train on, drawn evenly from the labels; by default all", unit="photos", ge=1
    )
    generated_images: int | None = option(
        None,
        "generated images to train on; by default what real_fraction makes of the real photos (of all for 0)",
        unit="images",
        ge=1,
    )
    model: list[NameOrAddress] = option(
        None,
        "generators to draw from: registered NAME, NAME/VERSION or a folder; by default each label's champion",
        default_factory=list,
    )
    weights: str | None = option(
        None, "start from ImageNet weights: a file (.pth or .safetensors), or imagenet for torchvision's download"
    )
    name: str | None = option(None, "name of the run; an interrupted run of the same name is resumed")
    promote: bool | None = option(
        None,
        "point the registered classifier's serving alias at this run's; by default if it learnt from real photos only",
    )
    allow_changes: bool = option(False, "resume a run although settings or shards differ from those it began with")

    @model_validator(mode="after")
    def _uses_all(self) -> ClassifySettings:
        if self.real_fraction == 1 and (self.generated_images or self.model):
            given = "generated_images" if self.generated_images else "model"
            raise ValueError(f"{given} is for generated images, of which real_fraction 1 has none: give a smaller one")
        if self.real_fraction == 0 and self.real_images:
            raise ValueError("real_images is for real photos, of which real_fraction 0 has none: give a larger one")
        return self


class UsefulnessSettings(ClassifierOptions, StorageSettings):
    """Everything `jobs/usefulness.py` can be told."""

    group: ClassVar[str] = "study"
    resumes: ClassVar[bool] = True

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, with two labels or more")
    real_sizes: list[int] = option(
        None,
        "sizes of the real sets to compare; by default 100, 400 and all training photos",
        unit="photos",
        default_factory=list,
    )
    real_fractions: list[float] = option(
        None,
        "shares of real photos in the training images: 1 adds nothing, 0.5 as many generated as real",
        default_factory=lambda: [1.0, 0.5, 0.2],
    )
    seeds: int = option(3, "trainings of each kind, with seeds of their own", ge=1, le=100)
    images: int = option(
        12_800, "images that each training sees, repeats included: the same for all", unit="images", ge=2
    )
    model: list[NameOrAddress] = option(
        None,
        "generators to draw from: registered NAME, NAME/VERSION or a folder; by default each label's champion",
        default_factory=list,
    )
    cpus_per_trial: float = option(1.0, "CPU cores reserved for each training, also its threads", unit="cores", gt=0)
    gpus_per_trial: float = option(0.0, "GPUs reserved for each training; a part of one is shared", ge=0)
    name: str | None = option(None, "name of the study; an interrupted one of the same name goes on")

    @model_validator(mode="after")
    def _makes_sense(self) -> UsefulnessSettings:
        if any(not 0 < fraction <= 1 for fraction in self.real_fractions):
            raise ValueError("real_fractions must be above 0 and at most 1; generated only is always measured, as CAS")
        if any(size < 2 for size in self.real_sizes):
            raise ValueError("real_sizes must be at least 2 photos each")
        return self


class EvaluateSettings(StorageSettings):
    """Everything `jobs/evaluate.py` can be told."""

    group: ClassVar[str] = "report card"

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote, to compare with")
    output: Address | None = option(None, "folder of the report; by default <storage>/reports/<name>")
    label: list[str] = option(None, "labels to judge; by default all that the generators draw", default_factory=list)
    model: list[NameOrAddress] = option(
        None,
        "generators to judge: registered NAME, NAME/VERSION, or the folder of a generator or checkpoint; "
        "by default each label's champion",
        default_factory=list,
    )
    samples: int = option(2000, "images to draw of each label from each generator", unit="images", ge=1)
    real_images: int = option(5000, "real photos of each label to compare with, at most", unit="photos", ge=1)
    network: list[NameOrAddress] = option(
        None,
        "feature networks: efficientnet_lite0, googlenet (--classifier, or the registered one), a classifier folder, "
        "or inception_v3",
        default_factory=lambda: ["efficientnet_lite0"],
    )
    inception_weights: str | None = option(
        None, "torch-fidelity's file of Inception v3 weights; by default inception_v3 is downloaded"
    )
    classifier: NameOrAddress | None = option(
        None, "classifier folder for the agreement; by default the registered one, if any"
    )
    baselines: bool = option(
        False,
        "judge real photos, an untrained generator and noise too; half of the real photos are then compared with",
    )
    seed: int = option(0, "seed of the samples and of every random choice", ge=0, lt=2**31)
    name: str | None = option(None, "name of the report; by default the time")

    @model_validator(mode="after")
    def _judges(self) -> EvaluateSettings:
        if not self.network:
            raise ValueError("network needs a name, such as efficientnet_lite0")
        if self.inception_weights and "inception_v3" not in self.network:
            raise ValueError("inception_weights are for network inception_v3, which is not among network")
        return self


def load_preset(name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Values of a preset that ships with the package. Raises ConfigurationError on an unknown name."""
    if name not in known:
        raise ConfigurationError(f"preset: {name!r} is unknown; choose one of {', '.join(known)}")
    text = resources.files("raygan").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def load_yaml(path: str) -> dict[str, Any]:
    """Values of a YAML file. Raises ConfigurationError if it can't be read or isn't a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigurationError(f"config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" at line {where.line + 1}" if where else ""
        raise ConfigurationError(f"config: {path} is not valid YAML{at}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"config: {path} must hold `key: value` lines, not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class FilterOptions(Settings):
    """What a photo must be to be kept."""

    group: ClassVar[str] = "filters"

    skip: list[
        Literal["too_small", "too_large", "bad_aspect", "flat", "blurry", "duplicate", "near_duplicate", "outlier"]
    ] = option(None, "filters to switch off", default_factory=list)
    min_side: int = option(32, "too_small: shortest short side", unit="px", ge=1)
    max_megapixels: float = option(
        50.0, "too_large: most pixels; a photo with more is never decoded", unit="megapixels", gt=0
    )
    max_megabytes: float = option(200.0, "too_large: biggest file; a bigger one is never read", unit="MB", gt=0)
    max_aspect: float = option(3.0, "bad_aspect: largest long side over short side", ge=1)
    min_contrast: float = option(
        4.0, "flat: smallest standard deviation of grey levels", unit="levels of 256", ge=0, le=127
    )
    min_sharpness: float = option(
        0.1, "blurry: least fine detail in a 64 px view; photos in focus have 0.3 or more", ge=0, le=3
    )
    hash_distance: int = option(
        6,
        "near_duplicate: most bits of 64 in which the perceptual hashes of two pictures differ",
        unit="bits",
        ge=0,
        le=15,
    )
    outlier_deviations: float = option(
        3.0, "outlier: robust standard deviations above the median of its label's scores", gt=0, le=20
    )
    outlier_network: NameOrAddress = option(
        "efficientnet_lite0",
        "outlier: feature network: efficientnet_lite0, googlenet (the registered classifier), a classifier's folder, "
        "or a file of GoogLeNet weights (.pth or .safetensors)",
    )


class PrepareSettings(FilterOptions, StorageSettings):
    """Everything `jobs/prepare.py` can be told."""

    group: ClassVar[str] = "photos and shards"
    resumes: ClassVar[bool] = True

    input: list[Address] = option(..., "folders, globs, Parquet files or URIs (s3://, gs://) of photos")
    output: Address = option(..., "folder or URI that the shards are written to")
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    label: str | None = option(None, "label of every photo; by default labels are found from folders and names")
    layout: Literal["auto", "folders", "names", "columns"] = option(
        "auto", "where labels are: class folders, file names such as cat.1.jpg, Parquet columns, or found out"
    )
    image_column: str | None = option(None, "Parquet column of encoded photos; by default found out")
    label_column: str | None = option(None, "Parquet column of labels; by default found out")
    fit: Literal["crop", "pad"] = option("crop", "cut the centre square out, or keep all and pad with black")
    crop_faces: bool = option(False, "cut faces out of whole photos with the detector; photos without one are rejected")
    detector: str | None = option(
        None, "face detector: an OpenCV cascade (.xml) or an ONNX export of a YOLO detector (.onnx)"
    )
    validation: float = option(0.05, "share of photos that training never sees, chosen by content hash", ge=0, le=0.5)
    encoding: Literal["raw", "png"] = option(
        "raw", "shards hold plain pixels (fast) or PNG files (about half the size)"
    )
    shard_images: int | None = option(
        None, "most images in a shard; by default 1024, or fewer if those are over 32 MB", unit="images", ge=1
    )
    chunk_images: int = option(
        512, "images that one task reads, and that a killed job reads again at most, per task", unit="images", ge=1
    )
    overwrite: bool = option(False, "replace another data set that the output holds")
    dry_run: bool = option(False, "judge the photos and report, writing nothing")


def _need_folder(name: str, path: str | None) -> None:
    """Raise ValueError if there is no folder for a file that is written at the end: better said before the work."""
    if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"{name}: there is no folder {os.path.dirname(os.path.abspath(path))}")


class NumbersFile(Settings):
    """Where measurements are written to."""

    group: ClassVar[str] = "numbers"

    json_file: str | None = option(None, "JSON file to write the numbers to")

    @model_validator(mode="after")
    def _can_be_written(self) -> NumbersFile:
        _need_folder("json_file", self.json_file)
        return self


class PrepareBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py prepare` can be told."""

    group: ClassVar[str] = "benchmark"

    input: list[Address] = option(..., "folders of photos to measure with")
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    rounds: int = option(2, "times everything is measured; the best of each counts", ge=1, le=100)
    outlier: bool = option(True, "measure with the outlier filter too; of memory: with it instead of without")
    memory: list[int] = option(
        None, "measure memory, not speed, with so many photos each", unit="photos", default_factory=list
    )
    scratch: str | None = option(None, "folder for the repeated photos of a memory measurement")


class TrainStepBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py train-step` can be told."""

    group: ClassVar[str] = "benchmark"

    presets: list[str] = option(
        None,
        "presets whose objective, networks and cadence are measured, all of the size below",
        default_factory=lambda: ["wgan-gp-128", "wgan-gp-64", "best-64", "dcgan-64"],
    )
    precisions: list[Literal["fp32", "bf16"]] = option(
        None, "precisions; by default fp32, and bf16 where the hardware computes it", default_factory=list
    )
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(64, "channels of the block next to the image", ge=1, le=512)
    batch_size: int = option(64, "reals in a critic step", unit="images", ge=1)
    rounds: int = option(5, "times everything is measured; the median counts", ge=1, le=100)
    seconds: float = option(3.0, "how long each is measured in a round", unit="s", gt=0)


class TrainBenchmarkSettings(NumbersFile, TrainSettings):
    """Everything `jobs/benchmark.py train` can be told."""

    group: ClassVar[str] = "benchmark"

    measure_kimg: float = option(6.0, "length of each training", unit="thousands of images", gt=0)
    workers: list[int] = option(None, "numbers of workers that share the cores", default_factory=lambda: [1, 2])
    rounds: int = option(3, "times everything is measured; the median counts", ge=1, le=100)


class QualityBenchmarkSettings(NumbersFile, StorageSettings):
    """Everything `jobs/benchmark.py quality` can be told."""

    group: ClassVar[str] = "benchmark"
    resumes: ClassVar[bool] = True

    data: Address = option(..., "folder of shards that jobs/prepare.py wrote")
    label: str | None = option(None, "train on this label only; by default on all labels together")
    presets: list[str] = option(None, "presets to train", default_factory=lambda: ["best-64", "wgan-gp-64"])
    textbook: bool = option(True, "train WGAN-GP as research repositories write it too")
    minutes: float = option(20.0, "how long each trains", unit="minutes", gt=0)
    points: int = option(4, "times at which KID is measured", ge=1, le=100)
    every: float = option(2.0, "images between two checkpoints", unit="thousands of images", gt=0)
    samples: int = option(1000, "samples that KID is measured on", unit="images", ge=16, le=50_000)
    network: str = option("efficientnet_lite0", "feature network, as in jobs/train.py --quality-network")
    picture: str | None = option(None, "PNG file to draw KID against time and the samples to")

    @model_validator(mode="after")
    def _has_a_place(self) -> QualityBenchmarkSettings:
        _need_folder("picture", self.picture)
        return self


class TuneBenchmarkSettings(NumbersFile, TuneSettings):
    """Everything `jobs/benchmark.py tune` can be told."""


class ScaleBenchmarkSettings(TrainBenchmarkSettings):
    """Everything `jobs/benchmark.py scale` can be told."""

    input: list[Address] = option(None, "folders of photos, to measure `prepare` too", default_factory=list)
    prepare_photos: int = option(6000, "photos for one core, which are those of --input repeated", ge=100)


class ServeBenchmarkSettings(NumbersFile):
    """Everything `jobs/benchmark.py serve` can be told."""

    group: ClassVar[str] = "benchmark"

    servers: list[Literal["fastapi", "fastapi-fast", "litserve", "raygan"]] = option(
        None,
        "servers to measure beside the bare models; by default all",
        default_factory=lambda: ["fastapi", "fastapi-fast", "litserve", "raygan"],
    )
    clients: list[int] = option(None, "numbers of clients", default_factory=lambda: [1, 8, 32])
    images: list[int] = option(None, "images in a request", unit="1 to 64", default_factory=lambda: [1, 16])
    seconds: float = option(10.0, "how long each number of clients asks", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class ServeDrillSettings(NumbersFile):
    """Everything `jobs/benchmark.py serve-drill` can be told."""

    group: ClassVar[str] = "drill"

    faults: bool = option(False, "kill a generator replica, a classifier replica and the gateway meanwhile")
    hostile: bool = option(False, "send hostile requests and uploads too, and watch the service's memory")
    clients: int = option(64, "clients that ask as soon as they are answered", ge=1, le=1024)
    seconds: float = option(120.0, "how long", unit="s", gt=0)
    image_size: ImageSize = option(64, "side of the square images", unit="px: 32, 64, 128 or 256")
    width: int = option(32, "channels of the generator's block next to the image", ge=1, le=512)


class DrillSettings(NumbersFile):
    """Everything `jobs/drill.py` can be told."""

    group: ClassVar[str] = "drill"

    drills: list[
        Literal[
            "worker",
            "controller",
            "node",
            "four",
            "notice",
            "submitted",
            "prepare",
            "tune",
            "serve",
            "mlflow",
            "storage",
        ]
    ] = option(None, "what is broken; by default everything", default_factory=list)
    short: bool = option(False, "with shorter jobs, to see that everything works; times are not comparable")
