"""Ray's private interfaces: all that raygan uses, each with the public one that would replace it.

The linter refuses them in any other file. If a new version of Ray changes them, only this file changes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData


def last_cluster() -> str | None:
    """The address of the cluster last started on this machine, also if it is gone; None if none was.

    Instead: a `ray.init(address="auto")` that fails at once if nobody listens there.
    """
    address: str | None = find_bootstrap_address(None)
    return address


def largest_cluster() -> Any:
    """The node groups that an autoscaling cluster may grow to, or None; Ray Train and Ray Data ask the same.

    Instead: a `ray.cluster_resources()` of the largest possible cluster.
    """
    return state.get_cluster_config()


def placement_groups() -> list[Any]:
    """Every job's placement groups, with the actor that created each and whether it is dead.

    Instead: a `ray.util.state.list_placement_groups` that tells the creator.
    """
    table = state._connect_and_get_accessor().get_placement_group_table()
    return [PlacementGroupTableData.FromString(row) for row in table]


def is_removed(group: Any) -> bool:
    """Whether a group of `placement_groups` has given back what it held."""
    return bool(group.state == PlacementGroupTableData.REMOVED)


def is_waiting(group: Any) -> bool:
    """Whether a group of `placement_groups` has not got its resources yet, or has lost them with a node."""
    return group.state in (PlacementGroupTableData.PENDING, PlacementGroupTableData.RESCHEDULING)


def kill(actor: bytes) -> None:
    """Kill an actor that this process has started, by its id.

    Instead: a Ray Train that gives out its controller's handle, for `ray.kill`.
    """
    with suppress(ValueError):  # another process started it, and it ends with that process
        ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID(actor), True)


def pass_on(variable: str) -> None:
    """Have Ray Train give its own actors this environment variable.

    Instead: a setting for it; `RunConfig(worker_runtime_env=...)` reaches only the workers.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # Ray Train takes half a second to import

    ENV_VARS_TO_PROPAGATE.add(variable)
