"""How a driver follows work elsewhere: the work in a thread, its events through a queue, a bar on standard error."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray.util.queue import Queue
from tqdm import tqdm

from raygan.errors import RayganError, is_full_disk, last_line
from raygan.runtime import storage

T = TypeVar("T")


class InBackground(Generic[T]):
    """A call in a thread of its own, so that the main thread stays free for signals and progress."""

    def __init__(self, call: Callable[[], T], doing: str, folder: str = ""):
        """Start the call.

        Args:
            call: what to do.
            doing: names it in the error, as in "training failed: ...".
            folder: address of the folder to which it writes, if known.
        """
        self._doing, self._folder = doing, folder
        self._outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._outcome["result"] = call()
        except BaseException as error:
            self._outcome["error"] = error

    def finished(self, within_s: float = 0.0) -> bool:
        """Whether the call has returned or raised, or does so while we wait."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the call and return its result.

        Raises:
            RayganError: it failed, with the innermost cause; or it took longer than this, and goes on.
        """
        self._thread.join(timeout_s)
        if not self.finished():
            raise RayganError(f"{self._doing} took more than {timeout_s:.0f} s")
        error = self._outcome.get("error")
        if error is not None:
            cause = last_line(error).removeprefix("raygan.errors.RayganError: ")  # a worker's own
            if is_full_disk(error):
                cause = _full_disk(self._folder)
            raise RayganError(f"{self._doing} failed: {cause}") from error
        result: T = self._outcome["result"]
        return result


def _full_disk(folder: str) -> str:
    """What to do about a full disk. The system's error says neither which it is nor, often, what was being written."""
    places = dict.fromkeys(filter(None, (folder, tempfile.gettempdir())))
    rooms = [f"{place} has {storage.size(free)} left" for place in places if (free := storage.room(place)) is not None]
    return f"a disk is full ({', '.join(rooms)}): make room; what is complete is kept, and the same command resumes"


def follow(
    events: Queue, call: InBackground[T], handle: Callable[[Any], None], look: Callable[[], None] = lambda: None
) -> T:
    """Handle events as they come until the call has ended and the queue is empty; return the call's result.

    `look` is called about twice a second, events or not. What it raises ends the waiting, but not the call.
    """
    ended = False
    while not ended:
        look()
        ended = call.finished(within_s=0.5)  # checked before the queue is read, so that the last events are in it ...
        if ended:
            time.sleep(0.1)  # ... also those on their way
        # Not `get`: if a signal ends the waiting, Ray prints a traceback of the call that found the queue empty.
        for event in events.get_nowait_batch(events.qsize()):
            handle(event)
    return call.result()


@dataclass(frozen=True)
class Seen:
    """A worker's progress.

    Attributes:
        images: images it has seen in all, those of earlier sessions included.
        worker: names the worker, where several send progress.
        says: text to show beside the bar.
        failed: why the work ended early, if it did.
    """

    images: int
    worker: str = ""
    says: str = ""
    failed: str = ""


class ImageProgress:
    """A progress bar on standard error over images seen, with rate and time left."""

    def __init__(self, total: int | None, doing: str, *, hidden: bool = False):
        """Open the bar.

        Args:
            total: images to see; None if that is not known yet.
            doing: the bar's title.
            hidden: show nothing.
        """
        self._bar = tqdm(
            total=total, desc=doing, unit="img", unit_scale=True, smoothing=0.05, file=sys.stderr, disable=hidden
        )
        self._seen: dict[str, int] = {}
        self._failed = ""

    def __enter__(self) -> ImageProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is; what is printed next begins on a line of its own."""
        self._bar.close()

    def follow(self, events: Queue, call: InBackground[T]) -> T:
        """Show `Seen` events until the call has ended, and return its result. Raises RayganError if a worker failed."""
        result = follow(events, call, self.show)
        if self._failed:
            raise RayganError(self._failed)
        return result

    def show(self, event: Seen, *, total: int | None = None) -> None:
        """Move the bar.

        Args:
            event: a worker's progress; images it has shown before are not taken back.
            total: what there is to see, if it has changed.
        """
        bar, before = self._bar, self._seen.get(event.worker)
        if not bar.disable:
            if total is not None:
                bar.total = total
            if before is None and (event.images or not self._seen):
                # Neither start-up nor what an earlier session did counts as this session's speed.
                bar.initial += event.images
                bar.n += event.images
                bar.last_print_n = bar.n
                bar.start_t = bar.last_print_t = time.time()
            if event.says:
                bar.set_postfix_str(event.says, refresh=False)
            bar.update(0 if before is None else max(0, event.images - before))
        self._seen[event.worker] = max(event.images, before or 0)
        self._failed = self._failed or event.failed
