"""MLflow, and the only room that touches it.

`connection` finds MLflow and checks that it works. `runs` opens a job's run; its metrics, tags and artifacts go to a
folder on disk (`spool`), from which a thread sends them (`outbox`), so nothing waits for MLflow and nothing is lost.
`heartbeat` tells whether a run's process is alive; `orphans` sends and closes what dead ones left. `callback` records
what Ray Train's workers report. `register` registers trained models, as MLflow models (`flavor`) with a `card`;
`models` finds them, and `promotion` moves the serving alias. `networks` finds the registered classifier and feature
networks by name.

MLflow takes more than a second to import. So the names below are imported on first use, and a process that needs only
`spool`, `callback` or `load_network` (Ray Train's controller, a task that measures) does without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygan.tracking.connection import await_server, check_records, connect, tracking_uri, ui_command
    from raygan.tracking.models import (
        CLASSIFIER_NAME,
        MODELS,
        NAMES,
        SERVING_ALIAS,
        RegisteredModel,
        check_labels,
        download_model,
        find_model,
        generator_name,
        serving_classifier,
        serving_generators,
    )
    from raygan.tracking.orphans import close_children, kill_children
    from raygan.tracking.register import keep_beside, register_classifier, register_generator
    from raygan.tracking.runs import Run, start_run

__all__ = [
    "CLASSIFIER_NAME",
    "MODELS",
    "NAMES",
    "SERVING_ALIAS",
    "RegisteredModel",
    "Run",
    "await_server",
    "check_labels",
    "check_records",
    "close_children",
    "connect",
    "download_model",
    "find_model",
    "generator_name",
    "keep_beside",
    "kill_children",
    "register_classifier",
    "register_generator",
    "serving_classifier",
    "serving_generators",
    "start_run",
    "tracking_uri",
    "ui_command",
]

_MODULES = ("connection", "models", "orphans", "register", "runs")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = (import_module(f"{__name__}.{module}") for module in _MODULES)
    globals()[name] = found = next(getattr(module, name) for module in modules if hasattr(module, name))
    return found
