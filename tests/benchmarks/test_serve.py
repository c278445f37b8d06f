"""The service's benchmark: what it reports of servers that fail, and the environment it starts them in."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raygan.benchmarks.clients import Request
from raygan.benchmarks.serve import measure_bare_models
from raygan.benchmarks.servers import free_port, running
from raygan.errors import RayganError


@pytest.mark.parametrize(
    ("stderr", "reason"), [("", "status -9"), ("Traceback\nMemoryError: no room\n", "MemoryError: no room")]
)
def test_failing_bare_models_are_reported(monkeypatch, stderr, reason):
    ended = subprocess.CompletedProcess([], -9, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(RayganError, match=f"the bare models failed: {reason}"):
        measure_bare_models(Path(), 1.0)


@pytest.fixture
def restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


SERVER = """
import http.server, os, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if "RAYGAN_TOKEN" in os.environ else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.mark.usefixtures("restore_sigterm")
def test_servers_do_not_get_the_users_token(monkeypatch):
    monkeypatch.setenv("RAYGAN_TOKEN", "the user's")
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    with running("a server", command, port, Request("/"), timeout_s=240) as seconds:
        assert seconds > 0


@pytest.mark.usefixtures("restore_sigterm")
def test_a_server_that_ends_is_reported_with_its_last_lines():
    command = [sys.executable, "-c", "raise SystemExit('no models')"]
    with (
        pytest.raises(RayganError, match="a server did not start: no models"),
        running("a server", command, free_port(), Request("/"), timeout_s=240),
    ):
        pass
