"""Model folders: weights as safetensors, and beside them a JSON file that says what they belong to.

Data, never code: reading a folder from a stranger can't run anything. torch and files only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raygan.errors import RayganError


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name, from whatever device, to a safetensors file."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path, *, part_of: str = "folder") -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises RayganError if it is missing or damaged.

    part_of: what is incomplete without the file, in words.
    """
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise RayganError(f"{path} is missing: the {part_of} is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise RayganError(f"{path} is damaged or truncated: {error}") from None


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all of a module's state. Raises RayganError, naming `path`, if names or shapes differ."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError:
        raise RayganError(f"{path} does not fit the architecture that its JSON file describes") from None


def save_description(path: Path, version: int, values: dict[str, Any]) -> None:
    """Write JSON-ready values with their format version."""
    path.write_text(json.dumps({"version": version, **values}, indent=2) + "\n", encoding="utf-8")


def load_description(path: Path, version: int, *, kind: str = "model") -> dict[str, Any]:
    """The values of a JSON file. Raises RayganError if it is missing, damaged or of another version.

    kind: of folder that should have the file, in words.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RayganError(f"{path} is missing: this is no {kind} folder") from None
    except (ValueError, OSError):
        raise RayganError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(values, dict) or values.get("version") != version:
        found = values.get("version") if isinstance(values, dict) else None
        raise RayganError(f"{path} has format version {found}; this raygan reads version {version}")
    return values
