"""Deploys the service: binds its deployments to registered models, and starts `serve run`.

``serve run serve_config.yaml`` deploys it; the arguments there are the fields of `ServeSettings`.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygan.errors import ConfigurationError, RayganError
from raygan.serve.settings import ServeJobSettings, ServeSettings
from raygan.settings import load_yaml, validate

if TYPE_CHECKING:
    from ray import serve
    from ray.serve.schema import ServeDeploySchema


#: Cores that Ray reserves per replica. Few, since replicas share cores (their threads use all of them) and a label
#: without room isn't served: two cores hold three labels, twice over while a new revision starts.
_REPLICA_CPUS = 0.2

#: Serve would log every call; the gateway already logs every request.
_QUIET = {"enable_access_log": False}


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for ``serve run``.

    Args:
        arguments: fields of `ServeSettings`.
    Raises:
        ConfigurationError: an unknown argument, or a token is required and missing.
        RayganError: MLflow doesn't answer.
    """
    from ray import serve

    from raygan import tracking
    from raygan.serve import gateway
    from raygan.serve.auth import check_token
    from raygan.serve.listener import Address
    from raygan.serve.middleware import MAX_REQUESTS

    settings = validate(ServeSettings, arguments)
    host, port, has_proxies = _serve_http()
    check_token(settings, host)
    models = sorted({model.name for model in tracking.serving_generators(tracking.connect(settings)).values()})
    store = _deployment(gateway.ModelStoreDeployment, "Registry", num_cpus=0.0).bind(settings)
    generators = {
        name: _deployment(gateway.GeneratorDeployment, gateway.generator_deployment(name)).bind(settings, name, store)
        for name in models
    }
    classifier = _deployment(gateway.ClassifierDeployment, "Classifier").bind(settings, store)
    ingress = serve.deployment(gateway.GatewayDeployment).options(
        name="Gateway",
        max_ongoing_requests=MAX_REQUESTS + 100,  # the surplus gets 503; proxies would queue what a replica refuses
        max_surge_percent=100,  # the new one listens before the old one stops
        graceful_shutdown_timeout_s=settings.timeout_seconds + 10,  # for requests in progress
        health_check_period_s=1,  # requests fail until Serve notices a dead gateway
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": 0.1},
    )
    handles = gateway.Handles(generators, classifier, store)
    application: serve.Application = ingress.bind(settings, handles, Address(host, port), has_proxies)
    return application


def _deployment(kind: type, name: str, *, num_cpus: float = _REPLICA_CPUS) -> serve.Deployment:
    from ray import serve

    return serve.deployment(kind).options(
        name=name,
        max_ongoing_requests=16,  # each gateway keeps up to two calls per replica in flight
        max_surge_percent=100,  # a new revision's replica has loaded before the old one stops
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": num_cpus},
    )


def run(settings: ServeJobSettings) -> None:
    """Check what would make ``serve run`` fail, then become ``serve run``; does not return.

    Raises:
        ConfigurationError: the port is in use, a token is required and missing, or the file is invalid.
        RayganError: there is no generator to serve.
    """
    from raygan import tracking
    from raygan.addresses import public
    from raygan.serve.auth import check_token

    service = _read_service(settings.service)
    http = service.http_options
    check_port(http.host, http.port)
    arguments = service.applications[0].args if service.applications else {}
    check_token(validate(ServeSettings, arguments), http.host)
    if not tracking.serving_generators(tracking.connect(settings)):
        raise RayganError(
            f"MLflow at {public(tracking.tracking_uri(settings))} has no generator with alias "
            f"{tracking.SERVING_ALIAS}: train one with jobs/train.py, or choose another registry with --storage "
            f"or --tracking-uri"
        )
    environment = {**os.environ, "RAYGAN_STORAGE": settings.storage}
    if settings.tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    program = str(Path(sys.executable).with_name("serve"))
    os.execve(program, [program, "run", settings.service], environment)  # noqa: S606 (Ray's own command)


def _read_service(path: str) -> ServeDeploySchema:
    """Ray Serve's configuration file. Raises ConfigurationError naming the first mistake."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        service: ServeDeploySchema = ServeDeploySchema.model_validate({"applications": [], **load_yaml(path)})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigurationError(f"--service: {path}: {where}: {problem['msg']}") from None
    return service


def check_port(host: str, port: int) -> None:
    """Raise ConfigurationError if the port is in use: Ray Serve would share it or retry forever."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {host} is not available ({error.strerror}): stop what uses it, or choose another"
            ) from None


def _serve_http() -> tuple[str, int, bool]:
    """Host and port of the service, and whether Serve's proxies listen there; the defaults if Serve isn't running."""
    from ray.serve.config import ProxyLocation

    # Private. `serve.status()` would replace it if it told the HTTP options; it has neither host, port nor location.
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return "127.0.0.1", 8000, True
    details = client.get_serve_details()
    http, location = details["http_options"], ProxyLocation(details["proxy_location"])
    return str(http["host"] or "127.0.0.1"), int(http["port"]), location is not ProxyLocation.Disabled
