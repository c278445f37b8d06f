"""The service with TLS, below a route prefix, behind Serve's own Python proxies: what HAProxy isn't there for."""

from __future__ import annotations

import shutil
import socket
import ssl
from dataclasses import replace

import httpx
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from raygan import tracking
from raygan.benchmarks.servers import free_port
from raygan.models.gan import build_generator, save_generator
from raygan.serve.settings import ServeSettings
from raygan.settings import load_yaml
from tests.conftest import takes_long
from tests.helpers import REPOSITORY, wait_until
from tests.serve.local import NETWORKS, make_certificate


def deploy(ray_cluster, settings, certificate):
    """The shipped configuration; returns the service's address."""
    service = load_yaml(str(REPOSITORY / "serve_config.yaml"))
    service["http_options"] |= {"port": free_port(), "ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    service["applications"][0] |= {"args": settings.plain(), "route_prefix": "/faces"}
    service["controller_options"]["runtime_env"]["env_vars"]["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    ServeSubmissionClient(f"http://{ray_cluster.dashboard_url}").deploy_applications(service)
    return f"https://127.0.0.1:{service['http_options']['port']}/faces"


def status_of(client, path):
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


@takes_long
def test_tls_a_route_prefix_and_clients_that_do_not_read(ray_cluster, tmp_path, empty_records):
    shutil.copy(empty_records, tmp_path)
    settings = ServeSettings(storage=str(tmp_path), tracking_uri=None, threads=1, max_sending_megabytes=32)
    save_generator(tmp_path / "model", build_generator(replace(NETWORKS, image_size=256)).eval(), {"label": "cat"})
    with tracking.start_run(settings, "trained", job="test", params={}) as run:
        tracking.register_generator(run, tmp_path / "model", "cat", labels=["cat"], promote=True)
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=certificate[0])
    address = deploy(ray_cluster, settings, certificate)
    large = "/v1/sample?label=cat&n=64&seed=1&format=npz"  # 13 MB, of which kernels hold some
    try:
        with httpx.Client(base_url=address, verify=context, timeout=60) as client:
            wait_until(lambda: status_of(client, "/readyz") == 200, "the service is ready")
            assert "raygan" in client.get("", follow_redirects=True).text
            assert len(client.get(large).content) > 12e6
            refused = client.get("/v1/stream?label=cat&n=10000")
            assert (refused.status_code, refused.json()["field"]) == (422, "n")
            assert len(client.get("/v1/stream?label=cat&n=10").text.splitlines()) == 10

            stalled = [stall(address, context, large) for _ in range(2)]  # half of what may wait is one client's
            wait_until(lambda: client.get(large).status_code == 503, "too much waits to be read")
            assert client.get("/v1/sample?label=cat&n=1").status_code == 200
            for connection in stalled:
                connection.close()
            wait_until(lambda: client.get(large).status_code == 200, "nothing waits any more")
    finally:
        serve.shutdown()


def stall(address, context, path):
    """A connection that has asked and doesn't read."""
    host, port = address.split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection = context.wrap_socket(connection, server_hostname=host)
    connection.sendall(f"GET /faces{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return connection
