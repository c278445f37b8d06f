"""Drills for the service: is it right under load, what do killed processes cost, does hostile input leave traces?

Many clients ask for everything that the service offers. Every image must be the one that the same request gave when
it was asked for alone; every other answer must be 503 with Retry-After, or a connection that the kill of the gateway
cut (counted apart: there is nobody left to answer on it). The last line of standard output is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from raygan.benchmarks.http_client import Answer, Connection
from raygan.benchmarks.serve import running
from raygan.config import ServeDrillSettings
from raygan.errors import RayganError

_HOST = "127.0.0.1"

#: Requests whose answers are known; small, large, many formats.
_REQUESTS = [
    *(f"/v1/sample?label=cat&n={n}&seed={seed}&format=npz" for n in (1, 4, 16) for seed in range(0, 400, 100)),
    *(f"/v1/sample?label=cat&n=9&seed={seed}&truncation=0.5" for seed in range(3)),
    "/v1/sample?label=cat&n=64&seed=5",
    "/v1/sample?label=cat&n=4&seed=5&min_confidence=0.01&format=grid",
    "/v1/sample?label=cat&n=2&seed=5&format=webp",
    "/v1/interpolate?label=cat&seed=1&to=2&frames=8&format=gif",
    "/v1/models",
]

_HOSTILE = [
    "/v1/sample?label=" + "%00" * 50,
    "/v1/sample?label=cat&n=-1",
    "/v1/sample?label=cat&seed=99999999999999999999999",
    "/v1/sample?label=cat&min_confidence=1&n=1",
    "/pages/..%2f..%2fetc%2fpasswd",
    "/v1/interpolate?label=cat&frames=1e9",
    "/" + "a" * 5000,
]


@dataclass
class Outcome:
    """What the clients of a drill saw."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    turned_away: int = 0
    cut: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    megabytes: list[float] = field(default_factory=list)
    back_after: dict[str, float] = field(default_factory=dict)


def drill(settings: ServeDrillSettings) -> dict[str, Any]:
    """Start a service of untrained models, drill it, print and return what came of it.

    Raises RayganError if an answer was wrong, or full service took more than 30 s to come back.
    """
    from raygan.benchmarks.serve_peers import make_models

    with tempfile.TemporaryDirectory(prefix="raygan-") as scratch:
        make_models(Path(scratch), settings.image_size, settings.width)
        with running("raygan", Path(scratch), {"poll_seconds": 1.0}) as (port, cold):
            outcome = asyncio.run(_drill(settings, port))
    result = {
        "cold_start_seconds": round(cold, 1),
        "right": outcome.right,
        "wrong": len(outcome.wrong),
        "turned_away_503": outcome.turned_away,
        "connections_cut": outcome.cut,
        "hostile_refused": {str(status): count for status, count in sorted(outcome.refused.items())},
        "slowest_seconds": round(outcome.slowest, 2),
        "back_after_seconds": {what: round(seconds, 1) for what, seconds in outcome.back_after.items()},
        "megabytes": [round(value) for value in outcome.megabytes],
    }
    print(json.dumps(result))
    if outcome.wrong:
        raise RayganError(f"{len(outcome.wrong)} answers were wrong, the first: {outcome.wrong[0]}")
    if any(seconds > 30 for seconds in outcome.back_after.values()):
        raise RayganError("full service took more than 30 s to come back")
    return result


async def _drill(settings: ServeDrillSettings, port: int) -> Outcome:
    outcome = Outcome()
    alone = Connection(_HOST, port)
    known = {path: (await alone.ask(path)).body for path in _REQUESTS}
    alone.close()
    over = asyncio.Event()
    work = [_client(port, number, over, known, outcome) for number in range(settings.clients)]
    if settings.hostile:
        work += [_hostile(port, over, outcome), _watch(settings.seconds / 20, over, outcome)]
    under_way = asyncio.gather(*work)
    began = time.perf_counter()
    if settings.faults:
        await _faults(port, settings.seconds, known, outcome)
    await asyncio.sleep(max(0.0, settings.seconds - (time.perf_counter() - began)))
    over.set()
    await under_way
    return outcome


async def _client(port: int, number: int, over: asyncio.Event, known: dict[str, bytes], outcome: Outcome) -> None:
    connection = Connection(_HOST, port)
    count = number * 7
    while not over.is_set():
        path = _REQUESTS[count % len(_REQUESTS)]
        answer = await connection.ask(path)
        outcome.slowest = max(outcome.slowest, answer.seconds)
        if answer.status == 200 and _same(path, answer.body, known[path]):
            outcome.right += 1
            count += 1
        elif answer.status == 503 and "retry-after" in answer.headers:
            outcome.turned_away += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        elif answer.status == 0:
            outcome.cut += 1
            await asyncio.sleep(0.2)
        else:
            outcome.wrong.append(f"{path}: {answer.status} {answer.body[:200]!r}")
            count += 1
    connection.close()


def _same(path: str, body: bytes, known: bytes) -> bool:
    """Whether the images are equal; probabilities may differ in their rounding, so npz is compared by its images."""
    if "format=npz" not in path:
        return body == known
    import io

    import numpy as np

    first, second = np.load(io.BytesIO(body)), np.load(io.BytesIO(known))
    same = np.array_equal(first["images"], second["images"])
    return bool(same and abs(first["probabilities"] - second["probabilities"]).max() < 0.01)


# ---------------------------------------------------------------- faults


async def _faults(port: int, seconds: float, known: dict[str, bytes], outcome: Outcome) -> None:
    """Kill a part at each quarter of the time, and wait until a request is answered rightly again by a new one."""
    for what in (":generator-cat", ":Classifier", ":Gateway"):
        await asyncio.sleep(seconds / 5)
        victims = _processes(what)
        for process in victims:
            process.send_signal(signal.SIGKILL)
        began = time.perf_counter()
        old = {process.pid for process in victims}
        while not await _whole(port, what, old, known):
            await asyncio.sleep(0.2)
            if time.perf_counter() - began > 120:
                break
        outcome.back_after[what.strip(":")] = time.perf_counter() - began


async def _whole(port: int, what: str, old: set[int], known: dict[str, bytes]) -> bool:
    if not {process.pid for process in _processes(what)} - old:
        return False
    connection = Connection(_HOST, port)
    answers: list[Answer] = [await connection.ask(path) for path in ("/readyz", _REQUESTS[0])]
    connection.close()
    return [answer.status for answer in answers] == [200, 200] and _same(
        _REQUESTS[0], answers[1].body, known[_REQUESTS[0]]
    )


def _processes(what: str) -> list[psutil.Process]:
    """Our service's processes whose title has `what`."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::ServeReplica") and what in title:
            found.append(process)
    return found


# ---------------------------------------------------------------- hostile input


async def _hostile(port: int, over: asyncio.Event, outcome: Outcome) -> None:
    """Requests and uploads that must be refused, again and again."""
    connection = Connection(_HOST, port)
    uploads = [
        b"",
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n" + os.urandom(2000),
        b"\xff\xd8\xff" + os.urandom(2000),
        b"GIF89a\xff",
    ]
    count = 0
    while not over.is_set():
        if count % 2:
            answer = await connection.ask(_HOSTILE[count // 2 % len(_HOSTILE)])
        else:
            file = uploads[count // 2 % len(uploads)]
            head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="../../x"\r\n\r\n'
            body = head + file + b"\r\n--b--\r\n"
            answer = await connection.ask("/v1/classify", body, "multipart/form-data; boundary=b")
        outcome.refused[answer.status] += 1
        if answer.status == 200 or answer.status == 500:
            outcome.wrong.append(f"hostile request {count}: {answer.status}")
        count += 1
        await asyncio.sleep(0.01)
    connection.close()


async def _watch(step: float, over: asyncio.Event, outcome: Outcome) -> None:
    """The service's resident megabytes, every `step` seconds."""
    while not over.is_set():
        outcome.megabytes.append(sum(process.memory_info().rss for process in _processes(":")) / 1e6)
        await asyncio.sleep(step)
