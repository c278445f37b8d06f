"""raygan trains and serves face-image GANs on Ray.

Data flows one way: photos, shards, batches, losses, checkpoint, registry, replica, HTTP. Each stage has its room and
its job: ``raygan prepare``, ``raygan train`` and so on. A notebook uses the names below; they are imported on first
use, so ``import raygan`` alone imports neither Ray, torch nor MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygan.api import LoadedClassifier, LoadedGenerator, load_classifier, load_generator, prepare, train
    from raygan.errors import ConfigurationError, RayganError

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "LoadedClassifier",
    "LoadedGenerator",
    "RayganError",
    "load_classifier",
    "load_generator",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raygan import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
