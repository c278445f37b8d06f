"""Settings of the service."""

from __future__ import annotations

from typing import ClassVar

from raygan.runtime.settings import StorageSettings
from raygan.settings import option


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
