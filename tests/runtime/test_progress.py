"""Progress: events are followed to the call's result, and a worker's failure is the error."""

import errno
import os
import re
import threading
import time

import pytest

from raygan.errors import RayganError
from raygan.runtime.progress import ImageProgress, InBackground, Seen, follow


class Queue:
    """Events as a Ray queue gives them."""

    def __init__(self, *events):
        self.events = list(events)

    def qsize(self):
        return len(self.events)

    def get_nowait_batch(self, count):
        batch, self.events = self.events[:count], self.events[count:]
        return batch


def test_progress_is_followed_to_the_result():
    with ImageProgress(100, "training") as progress:
        call = InBackground(lambda: "done", "training")
        assert progress.follow(Queue(Seen(0), Seen(50), Seen(100, says="fine")), call) == "done"


def test_why_a_worker_ended_before_its_time_is_the_error():
    with ImageProgress(100, "training") as progress, pytest.raises(RayganError, match="it diverged"):
        progress.follow(Queue(Seen(0), Seen(50, failed="it diverged")), InBackground(lambda: None, "training"))


def test_a_full_disk_is_named_whatever_the_library_says(tmp_path):
    def write():
        raise OSError(errno.ENOSPC, f"Error writing bytes to file. Detail: {os.strerror(errno.ENOSPC)}")

    with pytest.raises(RayganError, match=rf"training failed: a disk is full \({tmp_path} has .* left.*make room"):
        InBackground(write, "training", str(tmp_path)).result()


def test_an_event_sent_just_before_the_call_ends_is_handled():
    queue, handled = Queue(), []

    def call():
        queue.events.append("last")
        return "done"

    background = InBackground(call, "training")
    assert follow(queue, background, handled.append) == "done"
    assert handled == ["last"]


@pytest.mark.parametrize("hidden", [False, True])
def test_the_bar_goes_on_from_an_earlier_session(hidden, capsys):
    with ImageProgress(100, "training", hidden=hidden) as progress:
        progress.show(Seen(40))
        progress.show(Seen(50, says="loss 1"), total=200)
        progress.show(Seen(45))
    shown = capsys.readouterr().err
    assert ("50.0/200" in shown and "loss 1" in shown) != hidden
    assert bool(shown) != hidden


def test_what_earlier_sessions_saw_is_not_this_sessions_speed(capsys):
    with ImageProgress(1_000_000, "training") as progress:
        progress.show(Seen(500_000))
        time.sleep(0.2)
        progress.show(Seen(500_010))
    assert re.findall(r"[\d.]+(\w*)img/s", capsys.readouterr().err) == ["", ""]  # neither thousands nor millions


def test_a_look_can_end_the_waiting_for_a_call_that_does_not_end():
    forever = threading.Event()
    looked = []

    def look():
        looked.append(len(looked))
        if len(looked) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        follow(Queue(), InBackground(forever.wait, "training"), looked.append, look)
    assert looked == [0, 1]
    with pytest.raises(RayganError, match="training took more than 0 s"):
        InBackground(forever.wait, "training").result(0.01)
    forever.set()
