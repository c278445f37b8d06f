"""The service's benchmark: what it reports of servers that fail, and the environment it starts them in."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raygan.benchmarks.clients import Request
from raygan.benchmarks.results import write_json
from raygan.benchmarks.serve import aims, measure_bare_models
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


def test_a_server_whose_every_answer_failed_costs_no_other_numbers():
    def cells(rate):
        row = {"requests_per_second": rate, "images_per_second": rate, "p50": 10.0 if rate else math.nan}
        return {(n, clients): row for n in (1, 16) for clients in (1, 8, 32)}

    found = list(aims({"16": 100.0}, 20.0, {"raygan": cells(90.0), "fastapi": cells(0.0), "litserve": cells(45.0)}))
    assert "aim: n=16, at least 3 times plain FastAPI: nan (?)" in found
    assert "aim: n=1, 8 clients, ahead of LitServe: 2.00 (met)" in found
    assert "aim: n=16, at least 0.85 of the bare models: 0.90 (met)" in found


def test_what_was_not_measured_is_null_in_the_file(tmp_path):
    write_json(str(tmp_path / "numbers.json"), {"p50": math.nan, 8: [1.5, math.inf]})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=refuse)
    assert found == {"p50": None, "8": [1.5, None]}


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
