"""Serve: from MLflow's registry to HTTP.

1. `app.build` binds three deployments: the models' replicas, the model store, and the HTTP gateway in front of them. It
   runs on deployment; importing this package does nothing.
2. A request travels from Serve's ingress (HAProxy or its proxies) → `middleware` → `api` → `service` → `calls` (joins
   requests that come together, and repeats them if a replica dies) → (over Ray Serve, `stages`) `replicas` →
   `executor` (batches), and back through `encode` (PNG and other formats). Arrays travel between processes, never
   encoded pictures, and samples are drawn and classified in the same replica.
3. The gateway follows the registry's alias through `model_store` (see `versions`) and names a version in every call.
   Replicas load versions on demand, so nothing restarts, and a rollback is moving the alias back. A version that kills
   the process that loads it kills a `rehearsal`, not a replica.
4. Pixels depend only on label, seed, truncation and model version, never on load or batch: see `executor`.
"""

from __future__ import annotations

from typing import Any


def build(arguments: dict[str, Any]) -> Any:
    """The application named by `import_path` in `serve_config.yaml`; see `raygan.serve.app.build`."""
    from raygan.serve import app

    return app.build(arguments)
