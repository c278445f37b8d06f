"""Settings of the service, and of the job that starts it."""

from __future__ import annotations

from typing import ClassVar

from raygan.runtime.settings import OF_RUNS, StorageSettings
from raygan.settings import option


class ServeSettings(StorageSettings):
    """The service's arguments: `args` in `serve_config.yaml`."""

    group: ClassVar[str] = "service"

    token_file: str | None = option(
        None, "file with the bearer token that requests must carry; by default RAYGAN_TOKEN, if set"
    )
    public: bool = option(False, "serve without a token even though other machines can reach the port")
    cors_origins: list[str] = option(
        [], "websites whose pages may use the API, such as https://example.org; * allows all"
    )
    poll_seconds: float = option(5.0, "interval between checks for new model versions", unit="s", gt=0, le=3600)
    threads: int | None = option(
        None,
        "compute threads per replica, each with its own batch; by default one per core; a GPU has one",
        ge=1,
        le=256,
    )
    batch_images: int = option(32, "maximum batch size of a compute thread", unit="images", ge=1, le=256)
    loaded_versions: int = option(
        32, "maximum model versions in a replica's memory; the least recently used are dropped", ge=2, le=1024
    )
    max_waiting_images: int = option(
        4096,
        "maximum images in progress per gateway, drawn and uploaded ones each; further requests get 503",
        unit="images",
        ge=64,
    )
    max_draws: int = option(
        16, "with min_confidence: maximum samples drawn per requested image, and at most 256 in all", ge=1, le=64
    )
    timeout_seconds: float = option(
        30.0, "time limit per request until its answer begins, after which it gets 503", unit="s", gt=0
    )
    max_upload_megabytes: float = option(10.0, "maximum size of an uploaded file", unit="MB", gt=0)
    max_request_megabytes: float = option(32.0, "maximum size of a request body", unit="MB", gt=0)
    max_sending_megabytes: float = option(
        256.0, "maximum size of all answers unread by clients; further large answers get 503", unit="MB", ge=32
    )
    max_upload_megapixels: float = option(
        24.0, "maximum size of an uploaded photo, checked before decoding", unit="megapixels", gt=0
    )
    max_model_megabytes: float = option(
        1000.0, "maximum size of a model version's files; a larger one is not loaded", unit="MB", gt=0
    )
    access_log: bool = option(True, "print one line of JSON per request")


class ServeJobSettings(StorageSettings):
    """The flags of `jobs/serve.py`; the service's own arguments are in its file."""

    group: ClassVar[str] = "service"
    unlisted: ClassVar[frozenset[str]] = OF_RUNS

    service: str = option(
        "serve_config.yaml", "Ray Serve's configuration file: host, port, replicas, the service's arguments"
    )
