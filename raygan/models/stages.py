"""A critic's stages: which layers stay as they are (FreezeD), and where they move when a network grows."""

from __future__ import annotations

from torch import Tensor, nn

from raygan.errors import ConfigurationError
from raygan.models.registry import ARCHITECTURES


def trained_parameters(critic: nn.Module, architecture: str, frozen: int) -> list[nn.Parameter]:
    """The critic's parameters without those of its first stages (FreezeD, Mo et al. 2020, arXiv 2002.10964).

    Args:
        critic: of any kind.
        architecture: its name.
        frozen: stages that stay as they are, counted from the image.

    Raises:
        ConfigurationError: it has fewer stages than that, or its architecture doesn't define them.
    """
    if not frozen:
        return list(critic.parameters())
    stack, step = stages_of(architecture, "--freeze-critic")
    stages = len(critic.get_submodule(stack)) // step  # type: ignore[arg-type]
    if frozen > stages:
        raise ConfigurationError(f"--freeze-critic: this critic has only {stages} stages, not {frozen}")
    kept = tuple(f"{stack}.{number}." for number in range(frozen * step))
    names = [name for name, _ in critic.named_parameters()]
    # In the order of registration: layers before a stage are nearer to the image.
    last = max(place for place, name in enumerate(names) if name.startswith(kept))
    return list(critic.parameters())[last + 1 :]


def shifted(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The critic's tensors one stage further from the image."""
    stack, step = stages_of(architecture, "--begin-from")
    moved: dict[str, Tensor] = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        number, _, tail = rest.partition(".")
        moved[f"{stack}.{int(number) + step}.{tail}" if head == stack else name] = value
    return moved


def stages_of(architecture: str, flag: str) -> tuple[str, int]:
    """The name of the critic's stack of stages, and the layers of a stage. Raises ConfigurationError if unknown."""
    found: tuple[str, int] | None = getattr(ARCHITECTURES.load(architecture), "growth", None)
    if found is None:
        raise ConfigurationError(f"{flag}: the architecture {architecture} doesn't define stages")
    return found
