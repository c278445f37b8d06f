"""Tasks of `prepare` on tables, run by Ray Data within its limits on cores and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from raygan.errors import RayganError
from raygan.runtime import cluster

#: Cores that a task reserves. Ray Data notices only ten times a second that a task has finished, and
#: only then starts another within its budget: with one task of a fraction of a second per core, cores sat idle a third
#: of the time. With two, a core always has work. A task that runs a network takes seconds and has a core to itself,
#: since another worker would spend seconds on loading the network.
_CORES_OF_A_TASK, _CORES_WITH_A_NETWORK = 0.5, 1.0


def run(
    tables: Sequence[pa.Table], task: Callable[..., pa.Table], given: dict[str, Any], *, with_network: bool
) -> Iterator[dict[str, Any]]:
    """Run a task on each table, and yield the rows of its answers as they come.

    Args:
        tables: a task for each.
        task: of `raygan.data.tasks`.
        given: the task's other arguments.
        with_network: tasks of this job run a network.

    Raises:
        RayganError: a task failed.
    """
    if not tables:
        return
    import ray

    data = ray.data.from_arrow(list(tables))
    answers = data.map_batches(
        task,
        fn_kwargs=given,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=_CORES_WITH_A_NETWORK if with_network else _CORES_OF_A_TASK,
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer in batch.to_pylist():
                if answer["error"]:
                    raise RayganError(answer["error"])
                yield answer
    except ray.exceptions.RayError as error:
        raise cluster.failure(error) from error
