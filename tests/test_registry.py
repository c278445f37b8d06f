"""Registries know raygan's own names and those of installed packages, and report a broken package."""

import sys

import pytest

from raygan.errors import ConfigurationError
from raygan.registry import Registry
from tests.helpers import make_package


@pytest.fixture
def registry(tmp_path, monkeypatch):
    offers = "[raygan.tests]\nsquare = toy_numbers:square\nbroken = toy_missing:nothing\nown = toy_numbers:square"
    make_package(tmp_path, "toy_numbers", "def square(x):\n    return x * x\n", offers)
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("raygan.tests", {"own": "math:sqrt"})
    sys.modules.pop("toy_numbers", None)


def test_own_names_come_first_and_cannot_be_replaced(registry):
    assert registry.names() == ["own", "broken", "square"]
    assert registry.load("own")(9) == 3
    assert registry.load("square")(9) == 81


def test_unknown_names_and_broken_packages_are_reported(registry):
    with pytest.raises(ConfigurationError, match="'cube' is unknown; choose one of own, broken, square"):
        registry.load("cube")
    with pytest.raises(ConfigurationError, match=r"'broken' can't be loaded from toy_numbers .*toy_missing"):
        registry.load("broken")
