"""Weight files, and model folders: weights as safetensors beside a JSON file that describes them.

All files hold data, never code: reading a stranger's folder can't run anything. safetensors is imported where files are
read or written, so that networks can be trained where torch is all there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raygan.errors import RayganError

#: Maximum size of a JSON file that describes a model, in bytes.
_DESCRIPTION_BYTES = 2**20


def digest_of(net: nn.Module) -> str:
    """SHA-256, in hex, of a network's weights, on any device."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name, from any device, to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a file that `torch.save` wrote, on the CPU.

    Raises:
        Exception: the file is missing, damaged or holds code. Each reader raises errors of its own.
    """
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return dict(load_file(path))
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return dict(tensors) if isinstance(tensors, dict) else {}


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``part.`` before their names."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``part.``, by the rest of their names."""
    prefix = part + "."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_fits(build: Callable[[], nn.Module], path: Path) -> None:
    """Compare a network's shapes with a safetensors file's header, before memory for either is allocated.

    Args:
        build: makes the network; called on torch's meta device.
        path: the file.

    Raises:
        RayganError: names or shapes differ, or the file is missing or damaged. The message names `path`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in build().state_dict().items()}
    if found != expected:
        raise _misfit(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a model folder's safetensors file, on the CPU.

    Raises:
        RayganError: the file is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        return read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a module's whole state.

    Raises:
        RayganError: names or shapes differ. The message names `path`.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError:
        raise _misfit(path) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state, as `fill_optimizer` takes it."""
    states = optimizer.state_dict()["state"].items()
    return {f"{number}.{name}": value for number, state in states for name, value in state.items()}


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load an optimizer's state; its hyperparameters stay those in force.

    A file has no memory layouts. Fused optimizers take each parameter's state in the parameter's layout, without
    looking: with another they would pair weights with the moments of others.

    Args:
        optimizer: of the same parameters.
        tensors: named by the parameter's number and the state's name, such as ``3.exp_avg``.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        like = parameters[int(number)]
        placed = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value.clone()
        states.setdefault(int(number), {})[key] = placed
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _unreadable(path: Path, error: Exception) -> RayganError:
    if isinstance(error, FileNotFoundError):
        return RayganError(f"{path} is missing: its folder is incomplete")
    return RayganError(f"{path} is damaged or truncated: {error}")


def _misfit(path: Path) -> RayganError:
    return RayganError(f"{path} does not fit the architecture that its JSON file describes")


def save_description(path: Path, version: int, values: dict[str, Any]) -> None:
    """Write JSON-ready values with their format version."""
    path.write_text(json.dumps({"version": version, **values}, indent=2) + "\n", encoding="utf-8")


def load_description(path: Path, version: int, *, kind: str = "model") -> dict[str, Any]:
    """The values of a JSON file.

    Args:
        path: the file.
        version: the format version that the file must have.
        kind: of folder, in words, for the error message.

    Raises:
        RayganError: the file is missing, damaged or of another version.
    """
    try:
        if path.stat().st_size > _DESCRIPTION_BYTES:
            raise RayganError(f"{path} is larger than {_DESCRIPTION_BYTES // 2**20} MiB: it does not describe a model")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RayganError(f"{path} is missing: this is not a {kind} folder") from None
    except (ValueError, OSError, RecursionError):
        raise RayganError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(values, dict) or values.get("version") != version:
        found = values.get("version") if isinstance(values, dict) else None
        raise RayganError(f"{path} has format version {found}; this raygan reads version {version}")
    if not isinstance(values.get("about", {}), dict):
        raise RayganError(f"{path} is damaged: its `about` is no object")
    return values
