"""The service's benchmark: what it says of servers that fail, and what it starts them with."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raygan.benchmarks.serve import _bare, _process, free_port
from raygan.errors import RayganError


@pytest.mark.parametrize(
    ("said", "reason"), [("", "status -9"), ("Traceback\nMemoryError: no room\n", "MemoryError: no room")]
)
def test_bare_models_that_fail_are_said(monkeypatch, said, reason):
    ended = subprocess.CompletedProcess([], -9, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(RayganError, match=f"the bare models failed: {reason}"):
        _bare(Path(), 1.0)


SERVER = """
import http.server, os, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if "RAYGAN_TOKEN" in os.environ else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_servers_do_not_ask_for_the_users_token(monkeypatch):
    monkeypatch.setenv("RAYGAN_TOKEN", "the user's")
    monkeypatch.setattr("raygan.benchmarks.serve._PATIENCE", 10)
    before, port = signal.getsignal(signal.SIGTERM), free_port()
    try:
        with _process("a server", [sys.executable, "-c", SERVER, str(port)], port, "/") as seconds:
            assert seconds > 0
    finally:
        signal.signal(signal.SIGTERM, before)
