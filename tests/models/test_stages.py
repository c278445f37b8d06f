"""Which of a critic's parameters are trained where its first stages stay as they are."""

import pytest
from torch import nn

from raygan.models import stages
from raygan.models.stages import trained_parameters
from raygan.registry import Registry


class Pooling:
    """An architecture whose critic's stages begin with a layer without parameters."""

    growth = ("stages", 2)


@pytest.mark.parametrize(("frozen", "trained"), [(0, 0), (1, 2), (2, 3)])
def test_the_first_stages_and_what_comes_before_them_stay(monkeypatch, frozen, trained):
    own = {"pooling": f"{__name__}:Pooling"}
    monkeypatch.setattr(stages, "ARCHITECTURES", Registry("raygan.architectures", own))
    names = ["entry", "first", "second", "exit"]
    weighted = {name: nn.Conv2d(3, 3, 1, bias=False) for name in names}
    stack = nn.Sequential(nn.AvgPool2d(2), weighted["first"], nn.AvgPool2d(2), weighted["second"])
    critic = nn.ModuleDict({"entry": weighted["entry"], "stages": stack, "exit": weighted["exit"]})
    found = trained_parameters(critic, "pooling", frozen)
    assert [id(each) for each in found] == [id(weighted[name].weight) for name in names[trained:]]
