"""`jobs/benchmark.py serve-drill`: is the service right under load, while parts of it die or hostile input arrives?

Many clients ask for everything the service offers. Every image must equal the one that the same request got when it was
asked alone; any other answer must be a 503 with Retry-After. Only while the gateway is dead may a connection be cut or
refused, which is counted apart: nobody is left to answer. Under hostile input the service's memory must stop growing.
The last line of standard output is one JSON object.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from raygan.benchmarks.clients import Answer, Client, Request, Tally, keep_asking
from raygan.benchmarks.faults.known_answers import ask_alone, of_every_kind, same, upload
from raygan.benchmarks.processes import find_processes
from raygan.benchmarks.results import checkout, machine, write_json
from raygan.benchmarks.serve import peer
from raygan.benchmarks.servers import free_port
from raygan.benchmarks.settings import ServeDrillSettings
from raygan.errors import RayganError

#: The most that memory may grow from the second quarter of the processes' lives in a hostile drill to the last.
_MOST_GROWTH = 0.05

#: Memory samples in a drill, and the number below which a process's life is too short to tell.
_LOOKS, _FEW_LOOKS = 80, 24

#: Seconds within which full service must be back after a fault, and after which the drill stops waiting.
_MOST_SECONDS, _PATIENCE = 30, 120

#: Titles of the processes that are killed, by the replicas they serve.
_VICTIMS = {name: f"ray::ServeReplica.*:{name}" for name in ("Models", "Gateway")}


@dataclass
class Report(Tally):
    """What all clients of a drill saw.

    Attributes:
        refused: number of answers to hostile input by status.
        megabytes: resident memory over time of each of the service's processes, from its start on.
        back_after: seconds until full service, by what was killed.
    """

    refused: Counter[int] = field(default_factory=Counter)
    megabytes: dict[str, list[float]] = field(default_factory=dict)
    back_after: dict[str, float] = field(default_factory=dict)


def growth(lives: Iterable[Sequence[float]]) -> float:
    """Growth of all processes' median memory from the second quarter of a process's life to the last.

    A new process has yet to load and to fill its pools; by the second quarter of its life, it has.

    Args:
        lives: each process's memory over time. Lives with few samples, such as those of killed processes, don't
            count.
    """
    lives = [life for life in lives if len(life) >= _FEW_LOOKS]
    early = sum(statistics.median(life[len(life) // 4 : len(life) // 2]) for life in lives)
    late = sum(statistics.median(life[-(len(life) // 4) :]) for life in lives)
    return late / early - 1 if early else 0.0


def drill(settings: ServeDrillSettings) -> dict[str, Any]:
    """Start a service of untrained models, drill it, print and return the numbers.

    Raises:
        RayganError: an answer was wrong or none right, full service took more than 30 s to come back, or memory kept
            growing.
    """
    from raygan.benchmarks.serve_models import make_huge_model, make_models

    with tempfile.TemporaryDirectory(prefix="raygan-") as scratch:
        shutil.copy(checkout() / "serve_config.yaml", scratch)
        make_models(Path(scratch), settings.image_size, settings.width)
        if settings.hostile:
            make_huge_model(Path(scratch))  # a champion that never loads
        port = free_port()
        with peer("raygan", Path(scratch), port, {"poll_seconds": 1.0}) as cold:
            report = asyncio.run(_drill(settings, port))
    grown = growth(report.megabytes.values())
    result = {
        "machine": machine(),
        "settings": settings.plain(),
        "cold_start_seconds": round(cold, 1),
        "right": report.right,
        "wrong": len(report.wrong),
        "turned_away_503": report.turned_away,
        "connections_cut": report.cut,
        "hostile_refused": {str(status): count for status, count in sorted(report.refused.items())},
        "slowest_seconds": round(report.slowest, 2),
        "back_after_seconds": {what: round(seconds, 1) for what, seconds in report.back_after.items()},
        "megabytes": {name: [round(value) for value in life] for name, life in report.megabytes.items()},
        "memory_growth": round(grown, 3),
    }
    print(json.dumps(result))
    write_json(settings.json_file, result)
    check(report, grown)
    return result


def check(report: Report, grown: float) -> None:
    """Raise RayganError unless the service was right. grown: see `growth`."""
    if report.wrong:
        raise RayganError(f"{len(report.wrong)} answers were wrong, the first: {report.wrong[0]}")
    if not report.right:
        raise RayganError(f"no answer was right: {report.turned_away} were 503, and {report.cut} connections were cut")
    if any(seconds > _MOST_SECONDS for seconds in report.back_after.values()):
        raise RayganError(f"full service took more than {_MOST_SECONDS} s to come back")
    if grown > _MOST_GROWTH:
        raise RayganError(f"memory grew by {grown:.0%} from the second quarter of its processes' lives to the last")


async def _drill(settings: ServeDrillSettings, port: int) -> Report:
    report, over = Report(), asyncio.Event()
    known = await ask_alone(port, of_every_kind())

    def hear(request: Request, answer: Answer) -> float:
        alone = known[request]
        return report.count(request, answer, lambda: same(request, answer.body, alone))

    def requests(client: int) -> Iterator[Request]:
        first = 7 * client % len(known)
        return itertools.islice(itertools.cycle(known), first, None)

    work = [keep_asking(port, requests(client), hear, over.is_set) for client in range(settings.clients)]
    if settings.hostile:
        work += [
            _attack(port, over, report),
            _stall(port, over),
            _watch_memory(settings.seconds / _LOOKS, over, report),
        ]
    under_way = asyncio.gather(*work)
    began = time.perf_counter()
    if settings.faults:
        await _kill_parts(port, settings.seconds / 5, known, report)
    await asyncio.sleep(max(0.0, settings.seconds - (time.perf_counter() - began)))
    over.set()
    await under_way
    return report


# ---------------------------------------------------------------- faults


async def _kill_parts(port: int, pause: float, known: dict[Request, bytes], report: Report) -> None:
    """Kill one part after another, and each time wait until a new process gives a right answer."""
    for name, title in _VICTIMS.items():
        await asyncio.sleep(pause)
        victims = find_processes(title)
        report.gateway_is_dead = name == "Gateway"
        for process in victims:
            process.send_signal(signal.SIGKILL)
        began = time.perf_counter()
        old = {process.pid for process in victims}
        while not await _is_back(port, title, old, known) and time.perf_counter() - began <= _PATIENCE:
            await asyncio.sleep(0.2)
        report.back_after[name] = time.perf_counter() - began
        # Clients may notice only now that their connections to the dead gateway are cut.
        await asyncio.sleep(1)
        report.gateway_is_dead = False


async def _is_back(port: int, title: str, old: set[int], known: dict[Request, bytes]) -> bool:
    """Whether there is a new process of that title, and the service is ready and right."""
    if not {process.pid for process in find_processes(title)} - old:
        return False
    request = next(iter(known))
    async with Client(port) as client:
        ready, drawn = await client.ask(Request("/readyz")), await client.ask(request)
    return (ready.status, drawn.status) == (200, 200) and same(request, drawn.body, known[request])


# ---------------------------------------------------------------- hostile input


_HOSTILE_PATHS = [
    "/v1/sample?label=" + "%00" * 50,
    "/v1/sample?label=cat&n=-1",
    "/v1/sample?label=cat&seed=99999999999999999999999",
    "/v1/sample?label=cat&min_confidence=1&n=1",
    "/pages/..%2f..%2fetc%2fpasswd",
    "/v1/interpolate?label=cat&frames=1e9",
    "/" + "a" * 5000,
    "/" + "a" * 200_000,
    "/v1/sample?label=cat&version=999999",
    "/v1/sample?label=cat&seeds=" + "1," * 500,
    "/v1/stream?label=cat&n=1000000000",
    "/v1/sample?label=cat&n=64&min_confidence=1",
    "/v1/sample?label=huge",
    "/v1/sample?label=huge&version=1",
]

#: What is allowed, and costs the service as much as possible.
_COSTLY_PATHS = ["/v1/interpolate?label=cat&frames=64&bounce=true&format=gif"]

#: Connections that ask for much and read nothing, what they ask for in turn, and seconds until they give up.
_STALLING = ("/v1/sample?label=cat&n=64&seed=1&format=npz", "/v1/stream?label=cat&n=1000&seed=1")
_STALLED, _STALL_SECONDS = 20, 5.0


async def _attack(port: int, over: asyncio.Event, report: Report) -> None:
    """Send requests and uploads that must be refused, and some that only cost much, again and again."""
    uploads = [
        b"",
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n" + os.urandom(2000),
        b"\xff\xd8\xff" + os.urandom(2000),
        b"GIF89a\xff",
        _many_scans(),
    ]

    def requests() -> Iterator[Request]:
        paths = itertools.cycle(_HOSTILE_PATHS + _COSTLY_PATHS)
        for path, content in zip(paths, itertools.cycle(uploads), strict=False):
            yield upload(content, "../../x")
            yield Request(path)

    def hear(request: Request, answer: Answer) -> float:
        if answer.status == 200 and request.path in _COSTLY_PATHS:
            return 0.01
        report.refused[answer.status] += 1
        cut = answer.status == 0 and report.gateway_is_dead
        if answer.status not in (*range(400, 500), 503) and not cut:
            report.wrong.append(f"hostile {request.path[:100]}: {answer.status}")
        return 0.01

    await keep_asking(port, requests(), hear, over.is_set)


def _many_scans() -> bytes:
    """A progressive JPEG of 100 kB and 23 megapixels with 250 scans, each of which costs a decoder a whole picture."""
    buffer = io.BytesIO()
    Image.new("L", (4800, 4800), 128).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    return whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * 250 + whole[-2:]


async def _stall(port: int, over: asyncio.Event) -> None:
    """Ask for large answers and don't read them."""
    while not over.is_set():
        writers = []
        for _, path in zip(range(_STALLED), itertools.cycle(_STALLING), strict=False):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            except OSError:  # while the gateway is dead
                continue
            writer.write(f"GET {path} HTTP/1.1\r\nHost: drill\r\n\r\n".encode())
            writers.append(writer)
        await asyncio.sleep(_STALL_SECONDS)
        for writer in writers:
            writer.close()


async def _watch_memory(step: float, over: asyncio.Event, report: Report) -> None:
    """Record the resident memory of the service's processes every `step` seconds."""
    while not over.is_set():
        for process in find_processes("ray::ServeReplica.*:"):
            with suppress(psutil.NoSuchProcess):  # it has just been killed
                deployment = " ".join(process.cmdline()).split(":")[-1].split(".")[0].strip()
                life = report.megabytes.setdefault(f"{deployment} {process.pid}", [])
                life.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(step)
