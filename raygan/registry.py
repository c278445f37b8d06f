"""Registries: what a setting can name, from raygan itself and from installed packages.

A room that can be extended has a `registry.py` with its tables. Such a table is the only list of its names: allowed
values, help, report columns and plots derive from it. Another package adds to it through an entry point:

    [project.entry-points."raygan.objectives"]
    hinge = "my_package:Hinge"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from raygan.errors import ConfigurationError, first_line

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name. Nothing is imported until it is asked for, so listing names is cheap."""

    def __init__(self, group: str, own: Mapping[str, str]):
        """Declare the table.

        Args:
            group: entry point group in which packages offer more, such as ``raygan.objectives``.
            own: raygan's own, from name to ``module:attribute``.
        """
        self.group = group
        self._own = dict(own)

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name. They can't replace raygan's own names."""
        found = entry_points(group=self.group)
        return {
            point.name: point for point in sorted(found, key=lambda point: point.name) if point.name not in self._own
        }

    def names(self) -> list[str]:
        """All names, raygan's own first."""
        return [*self._own, *self._offered]

    def load(self, name: str) -> T:
        """The object of that name.

        Raises:
            ConfigurationError: the name is unknown, or the package that offers it can't be imported.
        """
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            found: T = getattr(importlib.import_module(module), attribute)
            return found
        if name not in self._offered:
            raise ConfigurationError(f"{name!r} is unknown; choose one of {', '.join(self.names())}")
        point = self._offered[name]
        try:
            loaded: T = point.load()
        except Exception as error:  # another package's module may raise anything
            package = point.dist.name if point.dist else point.value
            raise ConfigurationError(
                f"{name!r} can't be loaded from {package} ({point.value}): {first_line(error)}"
            ) from error
        return loaded

    def requirement(self, name: str) -> list[str]:
        """The package that offers a name, as pip takes it; empty for raygan's own names."""
        point = self._offered.get(name)
        return [f"{point.dist.name}=={point.dist.version}"] if point and point.dist else []

    def items(self) -> Iterator[tuple[str, T]]:
        """Each name with its object."""
        for name in self.names():
            yield name, self.load(name)
