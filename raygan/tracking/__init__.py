"""MLflow, and the only room that touches it: runs with their metrics and artifacts, and registered models."""

from raygan.tracking.models import (
    CLASSIFIER_NAME,
    SERVING_ALIAS,
    RegisteredModel,
    download_model,
    find_model,
    generator_name,
    register_classifier,
    register_generator,
    serving_classifier,
    serving_generators,
)
from raygan.tracking.runs import Run, close_children, connect, kill_children, start_run, tracking_uri, ui_command

__all__ = [
    "CLASSIFIER_NAME",
    "SERVING_ALIAS",
    "RegisteredModel",
    "Run",
    "close_children",
    "connect",
    "download_model",
    "find_model",
    "generator_name",
    "kill_children",
    "register_classifier",
    "register_generator",
    "serving_classifier",
    "serving_generators",
    "start_run",
    "tracking_uri",
    "ui_command",
]
