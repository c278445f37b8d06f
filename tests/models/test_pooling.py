"""The pool for bfloat16 images after a ReLU equals torch's."""

import pytest
import torch
from torch import nn

from raygan.models import pooling
from raygan.models.pooling import ReluMaxPool2d


@pytest.mark.parametrize("options", [{"stride": 1, "padding": 1}, {"stride": 2, "ceil_mode": True}], ids=str)
@pytest.mark.parametrize("shape", [(3, 64, 2, 2), (1, 64, 32, 16), (16, 480, 4, 4)], ids=str)
def test_it_equals_torchs_pool_bit_for_bit(options, shape, monkeypatch):
    monkeypatch.setattr(pooling, "FEW", 0)
    pool = nn.MaxPool2d(3, **options)
    images = torch.randn(shape).relu().to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    images[0, 0, 0, 0] = torch.inf
    pooled = ReluMaxPool2d(pool)(images)
    assert torch.equal(pooled, pool(images))
    assert pooled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("pool", "side", "can"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), 8, True),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 7, False),
        (nn.MaxPool2d(3, 2), 8, False),
        (nn.MaxPool2d(2, 2, ceil_mode=True), 8, False),
        (nn.MaxPool2d(3, 1, 1), 7, True),
        (nn.MaxPool2d(3, 1), 8, False),
        (nn.MaxPool2d(3, 1, 1, dilation=2), 8, False),
    ],
    ids=str,
)
def test_it_replaces_only_pools_that_it_equals(pool, side, can):
    assert ReluMaxPool2d.can_replace(pool, torch.Size([1, 8, side, side])) is can
