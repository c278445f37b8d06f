"""Which process works on a run, and whether it is alive.

A run's outbox has an *owner* file: host, process, and the time of the last heartbeat. On its own host the process is
looked up; on another host only the heartbeat counts, and after `DEAD_AFTER_S` without one the process counts as dead.
Whoever resumes a run doesn't wait that long, but watches for further heartbeats.

Clocks may be set while processes run. So a process is identified by its age since the machine's start, and a heartbeat
that seems old is checked against the storage's own clock, which dates all files there.

Where the storage is remote, the outbox itself is on the machine's disk, which a pod takes along when it goes. So each
heartbeat also copies what still waits there to the storage, next to the owner file, for whoever closes the run.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
from tqdm import tqdm

from raygan.errors import RayganError
from raygan.machine import boot_id
from raygan.runtime import storage
from raygan.tracking.spool import Spool

#: Seconds between two heartbeats, and without one until a process on another host counts as dead. Clocks of hosts may
#: differ by minutes.
BEAT_S, DEAD_AFTER_S = 30.0, 600.0

#: Seconds within which a process on another host shows that it is alive to whoever watches: two beats and some delay.
#: One beat may be the last of a pod that is being ended.
ALIVE_WITHIN_S = 75.0

#: File in an outbox that names the process that sends its records.
OWNER = "owner"


@dataclass(frozen=True)
class Owner:
    """The process that sends a spool's records.

    Attributes:
        host: its name.
        pid: the process's id.
        started: second of the process's start; ids are used again.
        beat: time of the last heartbeat, in seconds since 1970; 0 if an earlier version wrote none.
        boot: id of the machine's start, see `raygan.machine`; empty if an earlier version wrote none.
        since: seconds from the machine's start to the process's.
        folder: where it was read.
    """

    host: str
    pid: int
    started: int
    beat: float = 0.0
    boot: str = ""
    since: float = 0.0
    folder: str = ""

    @classmethod
    def here(cls) -> Owner:
        """This process, now."""
        process = psutil.Process()
        started, since = int(process.create_time()), _since(process)
        return cls(socket.gethostname(), os.getpid(), started, time.time(), boot_id(), since)

    @classmethod
    def read(cls, folder: str) -> Owner | None:
        """The owner of an outbox; None if it has none. Raises RayganError if the storage doesn't answer."""
        try:
            host, pid, started, *more = (storage.read_text(storage.join(folder, OWNER)) or "").split()
            beat, boot, since = [*more, *("0", "", "0")[len(more) :]]
            return cls(host, int(pid), int(started), float(beat), boot, float(since), folder)
        except ValueError:
            return None

    def write(self, folder: str) -> None:
        """Write the file. Raises RayganError if that fails."""
        content = f"{self.host} {self.pid} {self.started} {self.beat:.0f}"
        content += f" {self.boot} {self.since:.2f}" if self.boot else ""
        storage.write_bytes(storage.join(folder, OWNER), content.encode())

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    def lives(self) -> bool:
        """Whether the process is running, as far as can be told from here."""
        if not self.is_here:
            return not self.beat or time.time() - self.beat < DEAD_AFTER_S or self._age_s() < DEAD_AFTER_S
        try:
            process = psutil.Process(self.pid)
            # A difference of one second is rounding.
            here = abs(process.create_time() - self.started) < 2
            if self.boot:
                here = self.boot == boot_id() and abs(_since(process) - self.since) < 2
            return here and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def beats(self) -> bool:
        """Whether the process writes heartbeats while we watch. Raises RayganError if the storage doesn't answer."""
        deadline, seen = time.monotonic() + ALIVE_WITHIN_S, {self.beat}
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(1)
            now = Owner.read(self.folder)
            if now is None:  # it has just ended
                return False
            seen.add(now.beat)
        return len(seen) == 3

    def _age_s(self) -> float:
        """Seconds since the file was written, by the storage's clock. Raises RayganError if that can't be told."""
        probe = f".now-{uuid.uuid4().hex}"
        storage.write_bytes(storage.join(self.folder, probe), b"")
        written = {name: (info.mtime_ns or 0) / 1e9 for name, info in storage.entries(self.folder).items()}
        storage.delete(storage.join(self.folder, probe))
        return written.get(probe, 0.0) - written.get(OWNER, 0.0)


def _since(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: both are times of a clock that may have been set."""
    return float(process.create_time() - psutil.boot_time())


def take_over(folder: Path, kept: str | None) -> None:
    """Make this process the owner of an outbox. A new one appears with its owner; without, others would close its run.

    Args:
        folder: the outbox, which need not exist.
        kept: where the storage keeps it, if it is not in the storage itself.

    Raises:
        RayganError: the disk or the storage can't be written.
    """
    owner = Owner.here()
    if kept is not None:
        owner.write(kept)
    # Jobs that look for dead owners don't look there.
    new = folder.parent.with_name(f"{folder.name}-{owner.pid}")
    owner.write(str(new))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        new.rename(folder)
    except OSError:  # it has records already
        owner.write(str(folder))
        shutil.rmtree(new)


class Heartbeat:
    """Shows from a thread of its own that this process works on a run."""

    def __init__(self, spool: Spool, kept: str | None, every_s: float = BEAT_S):
        """Begin.

        Args:
            spool: of the run.
            kept: where the storage keeps the run's outbox, if the spool is not in the storage itself.
            every_s: seconds between two beats.

        Raises:
            RayganError: the disk or the storage can't be written.
        """
        self._spool, self._kept, self._every_s = spool, kept, every_s
        self._copied: set[str] = set()
        self._complained = False
        self._stopping = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating."""
        self._stopping.set()
        self._thread.join()

    def leave(self) -> None:
        """After the run has ended: leave nothing in the storage but records that MLflow has not accepted."""
        if self._kept is None:
            return
        try:
            self._copy_waiting(self._kept)
            if not self._copied:
                storage.delete(self._kept)
        except RayganError as error:
            self._complain(error)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._beat()
                self._complained = False
            except RayganError as error:  # no reason to end a job
                self._complain(error)

    def _beat(self) -> None:
        Owner.here().write(str(self._spool.folder))
        if self._kept is not None:
            Owner.here().write(self._kept)
            self._copy_waiting(self._kept)

    def _copy_waiting(self, kept: str) -> None:
        """Bring the copies of waiting records up to date."""
        there = {path.name: path for path in self._spool.waiting_files()}
        for name in sorted(there.keys() - self._copied, key=lambda name: name.endswith(".json")):  # contents first
            try:
                storage.write_bytes(storage.join(kept, name), there[name].read_bytes())
            except FileNotFoundError:
                continue  # sent in the meantime
            self._copied.add(name)
        for name in sorted(self._copied - there.keys()):
            storage.delete(storage.join(kept, name))
            self._copied.discard(name)

    def _complain(self, error: RayganError) -> None:
        if not self._complained:
            tqdm.write(f"warning: {error}; the run goes on", file=sys.stderr)
        self._complained = True


def fetch_kept(kept: str, spool: Spool) -> None:
    """Copy records that the storage keeps of a dead process's outbox into a spool of this machine.

    Raises RayganError if the storage can't be read, or the disk can't be written.
    """
    for address in storage.list_files(kept, "*"):
        name = storage.name(address)
        if name != OWNER and not (spool.folder / name).exists():
            # Whole or not at all: what is there already isn't fetched again.
            storage.write_bytes(str(spool.folder / name), storage.read_bytes(address))
