"""Serve: an inference graph from MLflow's registry to HTTP; `raygan.serve.app` says how it works."""

from __future__ import annotations

from typing import Any


def build(values: dict[str, Any]) -> Any:
    """The application that `serve_config.yaml` names; see `raygan.serve.app.build`."""
    from raygan.serve import app

    return app.build(values)
