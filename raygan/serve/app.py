"""Serve: an inference graph from MLflow's registry to HTTP.

The mental model:

1. `build` asks the registry which generators are champions and binds a deployment to each registered model, one to
   the classifier, one to the registry itself, and the HTTP gateway in front of them. It runs when the application is
   deployed; importing this package does nothing.
2. The gateway listens itself, or behind Serve's proxies where `proxy_location` has any (`listener`).
   A request goes gateway -> generator -> gateway -> classifier -> gateway. `api` says what may be asked, `service`
   what it means, `stages` gathers requests into calls, `replicas` compute them in `lanes`, `encode` makes pictures.
   Arrays travel between them, never pictures.
3. The gateway follows the registry's alias and names a version with every call; replicas load versions as they are
   asked for. Nothing restarts, and going back is moving the alias back.
4. Pixels depend on label, seed, n, truncation and model version alone: `lanes` sees to it.

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


#: What Ray sets aside for a replica. Little, since replicas share cores (their threads use all of them), and a label
#: that finds no room isn't served: two cores have room for three labels, twice over while a new revision starts.
_REPLICA_CPUS = 0.2

#: Serve writes a line for every call; the gateway writes one for every request.
_QUIET = {"enable_access_log": False}


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, for ``serve run``; `arguments` are the fields of `ServeSettings`.

    Raises ConfigurationError on an unknown argument or if a token is needed, RayganError if MLflow doesn't answer.
    """
    from ray import serve

    from raygan import tracking
    from raygan.serve import gateway
    from raygan.serve.auth import check_token
    from raygan.serve.listener import Address
    from raygan.serve.middleware import MOST_REQUESTS

    settings = validate(ServeSettings, arguments)
    host, port, has_proxies = _serve_http()
    check_token(settings, host)
    models = sorted({model.name for model in tracking.serving_generators(tracking.connect(settings)).values()})
    registry = _deployment(gateway.RegistryDeployment, "Registry", num_cpus=0.0).bind(settings)
    generators = {
        name: _deployment(gateway.GeneratorDeployment, gateway.generator_deployment(name)).bind(
            settings, name, registry
        )
        for name in models
    }
    classifier = _deployment(gateway.ClassifierDeployment, "Classifier").bind(settings, registry)
    ingress = serve.deployment(gateway.GatewayDeployment).options(
        name="Gateway",
        max_ongoing_requests=MOST_REQUESTS + 100,  # those are told to come again; proxies queue what a replica refuses
        max_surge_percent=100,  # a new one listens before the old one ends
        graceful_shutdown_timeout_s=settings.timeout_seconds + 10,  # it finishes what it began
        health_check_period_s=1,  # nobody answers until Serve sees that the gateway has died
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": 0.1},
    )
    handles = gateway.Handles(generators, classifier, registry)
    application: serve.Application = ingress.bind(settings, handles, Address(host, port), has_proxies)
    return application


def _deployment(kind: type, name: str, *, num_cpus: float = _REPLICA_CPUS) -> serve.Deployment:
    from ray import serve

    return serve.deployment(kind).options(
        name=name,
        max_ongoing_requests=16,  # a gateway keeps two calls for each replica under way; more are other gateways'
        max_surge_percent=100,  # a new revision's replica has loaded before the old one ends
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": num_cpus},
    )


def run(settings: ServeJobSettings) -> None:
    """Check what ``serve run`` would stumble over, then become ``serve run``; does not return.

    Raises ConfigurationError if the port is in use, a token is needed or the file is wrong, RayganError if there is
    no generator to serve.
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
            f"{tracking.SERVING_ALIAS}: train one with jobs/train.py, or name another place with --storage or "
            f"--tracking-uri"
        )
    environment = {**os.environ, "RAYGAN_STORAGE": settings.storage}
    if settings.tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    program = str(Path(sys.executable).with_name("serve"))
    os.execve(program, [program, "run", settings.service], environment)  # noqa: S606 (Ray's own command)


def _read_service(path: str) -> ServeDeploySchema:
    """Ray Serve's configuration file. Raises ConfigurationError that names what is wrong in it."""
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
    """Raise ConfigurationError if something listens on the port: Ray Serve would share it or try for ever."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {host} can't be had ({error.strerror}): stop its user, or choose another"
            ) from None


def _serve_http() -> tuple[str, int, bool]:
    """Host and port of the service, and whether Serve's proxies listen there; the defaults where Serve isn't up yet."""
    from ray.serve.config import ProxyLocation
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return "127.0.0.1", 8000, True
    details = client.get_serve_details()
    http, location = details["http_options"], ProxyLocation(details["proxy_location"])
    return str(http["host"] or "127.0.0.1"), int(http["port"]), location is not ProxyLocation.Disabled
