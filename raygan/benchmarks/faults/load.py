"""Drills for the service: is it right under load, what do killed processes cost, does hostile input leave traces?

Many clients ask for everything that the service offers. Every image must be the one that the same request gave when
it was asked for alone; every other answer must be 503 with Retry-After. Only while the gateway is dead may a connection
be cut or refused (counted apart: there is nobody left to answer on it). Under hostile input the service's memory must
come to rest. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import statistics
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from raygan.benchmarks.http_client import Connection
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.serve import running
from raygan.benchmarks.settings import ServeDrillSettings
from raygan.errors import RayganError

_HOST = "127.0.0.1"

#: The most that memory may grow from the second quarter of a hostile drill to its last.
_MOST_GROWTH = 0.05

#: What a client may ask: a path, and of a POST its body and type.
_Ask = tuple[str, bytes | None, str]


def _part(content: bytes, name: str = "x.png") -> tuple[bytes, str]:
    """An upload as a form's body, and its type."""
    head = f'--b\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def _requests() -> list[_Ask]:
    """Requests whose answers are known; small, large, of every kind and format."""
    upload = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(upload, "PNG")
    paths = [
        *(f"/v1/sample?label=cat&n={n}&seed={seed}&format=npz" for n in (1, 4, 16) for seed in range(0, 400, 100)),
        *(f"/v1/sample?label=cat&n=9&seed={seed}&truncation=0.5" for seed in range(3)),
        "/v1/sample?label=cat&n=64&seed=5",
        "/v1/sample?label=cat&n=4&seed=5&min_confidence=0.01&format=grid",
        *(f"/v1/sample?label=cat&n=2&seed=5&format={kind}" for kind in ("webp", "jpeg", "json", "zip")),
        "/v1/interpolate?label=cat&seed=1&to=2&frames=8&format=gif",
        "/v1/models",
    ]
    gets: list[_Ask] = [(path, None, "") for path in paths]
    posted = json.dumps({"label": "cat", "n": 3, "seed": 8, "format": "npz"}).encode()
    return [*gets, ("/v1/sample", posted, "application/json"), ("/v1/classify", *_part(upload.getvalue()))]


_HOSTILE = [
    "/v1/sample?label=" + "%00" * 50,
    "/v1/sample?label=cat&n=-1",
    "/v1/sample?label=cat&seed=99999999999999999999999",
    "/v1/sample?label=cat&min_confidence=1&n=1",
    "/pages/..%2f..%2fetc%2fpasswd",
    "/v1/interpolate?label=cat&frames=1e9",
    "/" + "a" * 5000,
    "/" + "a" * 200_000,
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
    gateway_is_dead: bool = False

    @property
    def growth(self) -> float:
        """Share by which the median of memory's last quarter is above that of its second; 0 if it was not watched."""
        quarter = len(self.megabytes) // 4
        if not quarter:
            return 0.0
        early = statistics.median(self.megabytes[quarter : 2 * quarter])
        return statistics.median(self.megabytes[-quarter:]) / early - 1


def drill(settings: ServeDrillSettings, checkout: Path) -> dict[str, Any]:
    """Start a service of untrained models, drill it, print and return what came of it. checkout: where jobs/ is.

    Raises RayganError if an answer was wrong, full service took more than 30 s to come back, or memory went on growing.
    """
    from raygan.benchmarks.serve_peers import make_models

    with tempfile.TemporaryDirectory(prefix="raygan-") as scratch:
        make_models(Path(scratch), settings.image_size, settings.width)
        shutil.copy(checkout / "serve_config.yaml", scratch)
        with running("raygan", Path(scratch), {"poll_seconds": 1.0}) as (port, cold):
            outcome = asyncio.run(_drill(settings, port))
    result = {
        "machine": machine(),
        "settings": settings.plain(),
        "cold_start_seconds": round(cold, 1),
        "right": outcome.right,
        "wrong": len(outcome.wrong),
        "turned_away_503": outcome.turned_away,
        "connections_cut": outcome.cut,
        "hostile_refused": {str(status): count for status, count in sorted(outcome.refused.items())},
        "slowest_seconds": round(outcome.slowest, 2),
        "back_after_seconds": {what: round(seconds, 1) for what, seconds in outcome.back_after.items()},
        "megabytes": [round(value) for value in outcome.megabytes],
        "memory_growth": round(outcome.growth, 3),
    }
    print(json.dumps(result))
    write_json(settings.json_file, result)
    if outcome.wrong:
        raise RayganError(f"{len(outcome.wrong)} answers were wrong, the first: {outcome.wrong[0]}")
    if any(seconds > 30 for seconds in outcome.back_after.values()):
        raise RayganError("full service took more than 30 s to come back")
    if outcome.growth > _MOST_GROWTH:
        raise RayganError(f"memory grew by {outcome.growth:.0%} from the second quarter of the drill to the last")
    return result


async def _drill(settings: ServeDrillSettings, port: int) -> Outcome:
    outcome = Outcome()
    alone = Connection(_HOST, port)
    known = {}
    for ask in _requests():
        answer = await alone.ask(*ask)
        if answer.status != 200:
            raise RayganError(f"{ask[0]} is answered {answer.status} before the drill: {answer.body[:200]!r}")
        known[ask] = answer.body
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


async def _client(port: int, number: int, over: asyncio.Event, known: dict[_Ask, bytes], outcome: Outcome) -> None:
    connection = Connection(_HOST, port)
    count, asks = number * 7, list(known)
    while not over.is_set():
        ask = asks[count % len(asks)]
        answer = await connection.ask(*ask)
        outcome.slowest = max(outcome.slowest, answer.seconds)
        if answer.status == 200 and _same(ask, answer.body, known[ask]):
            outcome.right += 1
            count += 1
        elif answer.status == 503 and "retry-after" in answer.headers:
            outcome.turned_away += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        elif answer.status == 0 and outcome.gateway_is_dead:
            outcome.cut += 1
            await asyncio.sleep(0.2)
        else:
            outcome.wrong.append(f"{ask[0]}: {answer.status} {answer.body[:200]!r}")
            count += 1
    connection.close()


def _same(ask: _Ask, body: bytes, known: bytes) -> bool:
    """Whether the images are equal; probabilities may differ in their rounding."""
    if ask[0].endswith(("classify", "format=json")):
        return _equal(json.loads(body), json.loads(known))
    if "format=zip" in ask[0]:
        return _pictures(body) == _pictures(known)
    if "format=npz" not in ask[0] and b"npz" not in (ask[1] or b""):
        return body == known
    first, second = np.load(io.BytesIO(body)), np.load(io.BytesIO(known))
    same = np.array_equal(first["images"], second["images"])
    return bool(same and abs(first["probabilities"] - second["probabilities"]).max() < 0.01)


def _pictures(body: bytes) -> dict[str, bytes]:
    """The PNG files of a ZIP file."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}


def _equal(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal but for rounding."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) < 0.01
    return bool(first == second)


# ---------------------------------------------------------------- faults


async def _faults(port: int, seconds: float, known: dict[_Ask, bytes], outcome: Outcome) -> None:
    """Kill a part at each quarter of the time, and wait until a request is answered rightly again by a new one."""
    for what in (":generator-cat", ":Classifier", ":Gateway"):
        await asyncio.sleep(seconds / 5)
        victims = _processes(what)
        outcome.gateway_is_dead = what == ":Gateway"
        for process in victims:
            process.send_signal(signal.SIGKILL)
        began = time.perf_counter()
        old = {process.pid for process in victims}
        while not await _whole(port, what, old, known):
            await asyncio.sleep(0.2)
            if time.perf_counter() - began > 120:
                break
        outcome.back_after[what.strip(":")] = time.perf_counter() - began
        # Connections that were opened to the dead one may be seen to be cut a little later.
        await asyncio.sleep(1)
        outcome.gateway_is_dead = False


async def _whole(port: int, what: str, old: set[int], known: dict[_Ask, bytes]) -> bool:
    if not {process.pid for process in _processes(what)} - old:
        return False
    connection, ask = Connection(_HOST, port), next(iter(known))
    ready, drawn = await connection.ask("/readyz"), await connection.ask(*ask)
    connection.close()
    return (ready.status, drawn.status) == (200, 200) and _same(ask, drawn.body, known[ask])


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
            answer = await connection.ask("/v1/classify", *_part(file, "../../x"))
        outcome.refused[answer.status] += 1
        dead = answer.status == 0 and outcome.gateway_is_dead
        if answer.status not in (*range(400, 500), 503) and not dead:
            outcome.wrong.append(f"hostile request {count}: {answer.status}")
        count += 1
        await asyncio.sleep(0.01)
    connection.close()


async def _watch(step: float, over: asyncio.Event, outcome: Outcome) -> None:
    """The service's resident megabytes, every `step` seconds."""
    while not over.is_set():
        outcome.megabytes.append(sum(process.memory_info().rss for process in _processes(":")) / 1e6)
        await asyncio.sleep(step)
