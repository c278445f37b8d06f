"""What stands for torch's layers where networks only answer, beside those layers."""

import pytest
import torch
from torch import nn

from raygan.models import fuse
from raygan.models.fuse import fast_network
from raygan.models.googlenet import build_googlenet
from raygan.models.hardware import computes_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, 5, stride=2, padding=(2, 1), bias=False),
        nn.Conv2d(6, 9, 3, dilation=2, groups=3),
        nn.ConvTranspose2d(6, 8, 4, 2, 1),
        nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1, bias=False),
        nn.ConvTranspose2d(6, 9, (3, 2), groups=3, dilation=2),
    ],
    ids=str,
)
def test_a_packed_convolution_is_torchs_own_for_images_of_any_shape(layer):
    shapes = [(1, 6, 8, 8), (5, 6, 8, 8), (2, 6, 13, 9)]
    packed = fast_network(nn.Sequential(layer).eval(), [torch.zeros(shapes[0])], CPU)
    assert type(packed[0]) is not type(layer)
    with torch.inference_mode():
        for shape in shapes:
            images = torch.randn(shape)
            torch.testing.assert_close(packed(images), layer(images), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not computes_bf16(CPU), reason="bfloat16 isn't native here, so nothing is packed")
def test_a_packed_convolution_in_bfloat16_rounds_as_torchs_own():
    layer = nn.Conv2d(16, 32, 3, padding=1)
    images = torch.randn(4, 16, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    packed = fast_network(nn.Sequential(layer).eval(), [images], CPU, torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(images), layer.to(torch.bfloat16)(images))


def test_where_bfloat16_is_emulated_convolutions_stay_torchs(monkeypatch):
    monkeypatch.setattr(fuse, "computes_bf16", lambda device: False)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    network = fast_network(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [images], CPU, torch.bfloat16)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize("options", [{"stride": 1, "padding": 1}, {"stride": 2, "ceil_mode": True}], ids=str)
@pytest.mark.parametrize("shape", [(3, 64, 2, 2), (1, 64, 32, 16), (16, 480, 4, 4)], ids=str)
def test_a_quick_pool_is_torchs_own_to_the_last_bit(options, shape, monkeypatch):
    monkeypatch.setattr(fuse, "_FEW", 0)
    pool = nn.MaxPool2d(3, **options)
    images = torch.randn(shape).relu().to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    images[0, 0, 0, 0] = torch.inf
    quick = fuse._Pool(pool)(images)
    assert torch.equal(quick, pool(images))
    assert quick.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [32, 80, 224])
def test_the_pools_of_a_googlenet_are_replaced_where_that_changes_nothing(size):
    """At 80 px some have odd sides, and those of 2x2 are left as they are."""
    network = build_googlenet(2, auxiliary=False).eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, size, size).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = network(images)
        fuse._replace(network, [images], fuse._quick_pool)
        assert torch.equal(network(images), before)
    assert sum(isinstance(module, fuse._Pool) for module in network.modules()) >= 9


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
def test_other_pools_are_left(pool, side, can):
    assert fuse._Pool.can_replace(pool, torch.Size([1, 8, side, side])) is can
