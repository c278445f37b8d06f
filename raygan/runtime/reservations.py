"""Returning cores that a dead training still holds, and telling of a training that waits for cores.

Ray Train reserves a training's cores in a placement group. Its controller, an actor, creates the group and removes it
when the training ends. If the controller is killed (a stopped trial, a population's exploit), the group stays until
the job ends. Ray starts a cleaner for this case, but the cleaner gives up silently when it can't ask the dashboard,
when several Ray instances run on the machine, or when it was told to stop before the controller died; then every later
training in the same job waits forever. So raygan asks the cluster's own table, which knows whether a group's creator
is dead, and removes those groups itself.

This is the only module that reads Ray's private placement group table. `ray.util.state.list_placement_groups` would
replace it if it told a group's creator and whether the creator is alive.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raygan.runtime import private, waiting

#: Seconds between two looks at the table.
_EVERY_S = 1.0

#: Seconds to wait for controllers to die at the end of a training or search.
_END_S = 10.0

_ADDRESS = "RAY_ADDRESS"


@contextmanager
def returned_cores() -> Iterator[None]:
    """Remove the placement groups of this job's dead trainings while the block runs, and at its end.

    If a training waits for resources meanwhile, that is said once.

    The end waits at most 10 s until the groups that the block's trainings made are gone. If the block raises, for
    example at Ctrl-C in a notebook, the controllers that this process started are killed first.
    """
    before = {group.placement_group_id for group in _groups_of_actors()}
    ended, late = threading.Event(), _Waiting()

    def sweep() -> None:
        while not ended.wait(_EVERY_S):
            # A head that doesn't answer for a moment must not end the sweeping, or cores stay taken again.
            with suppress(ray.exceptions.RayError, ConnectionError, RuntimeError):
                late.look(remove_orphans())

    sweeper = threading.Thread(target=sweep, name="returned-cores", daemon=True)
    sweeper.start()
    failed = True
    try:
        with addressed():
            yield
        failed = False
    finally:
        ended.set()
        sweeper.join()
        if ray.is_initialized():
            _remove_all_but(before, kill=failed)


class _Waiting:
    """Says, once, that a training waits for resources, which looks like one that hangs."""

    def __init__(self) -> None:
        self._since: dict[bytes, float] = {}
        self._said = False

    def look(self, groups: Sequence[Any]) -> None:
        """Look at this job's placement groups; called once in a while."""
        now = time.monotonic()
        pending = {group.placement_group_id: group for group in groups if private.is_waiting(group)}
        self._since = {number: self._since.get(number, now) for number in pending}
        late = next((number for number, since in self._since.items() if now - since >= waiting.LATE_S), None)
        if late is None or self._said:
            return
        self._said = True
        wanted: Counter[str] = Counter()
        for bundle in pending[late].bundles:
            wanted.update(bundle.unit_resources)
        waiting.say(wanted, "the training")


def _remove_all_but(before: set[bytes], kill: bool) -> None:
    deadline = time.monotonic() + _END_S
    while True:
        remove_orphans()
        left = [group for group in _groups_of_actors() if group.placement_group_id not in before]
        if not left or time.monotonic() > deadline:
            return
        if kill:
            for group in left:
                private.kill(group.creator_actor_id)
        time.sleep(0.2)


def remove_orphans() -> list[Any]:
    """Remove this job's placement groups whose creating actor is dead, and return the others."""
    groups = _groups_of_actors()
    for group in groups:
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return [group for group in groups if not group.creator_actor_dead]


def _groups_of_actors() -> list[Any]:
    """This job's placement groups that an actor created and nobody has removed."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id()).binary()
    return [
        group
        for group in private.placement_groups()
        if group.creator_job_id == job
        and not private.is_removed(group)
        and not group.is_detached
        and not ray.ActorID(group.creator_actor_id).is_nil()
    ]


@contextmanager
def addressed() -> Iterator[None]:
    """Tell Ray Train's actors which cluster is theirs.

    Otherwise its cleaner asks whichever cluster it finds on the machine. A foreign cluster doesn't know the controller;
    the cleaner would take it for dead and end a healthy training.
    """
    before = os.environ.get(_ADDRESS)
    private.pass_on(_ADDRESS)
    os.environ[_ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
