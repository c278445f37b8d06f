"""Networks made fast for serving give the answers of the originals."""

import pytest
import torch
from torch import nn

from raygan.models import fuse
from raygan.models.fuse import fast_network, fold_batch_norms, replace_pools
from raygan.models.googlenet import build_googlenet
from raygan.models.hardware import computes_bf16
from raygan.models.pooling import ReluMaxPool2d

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
def test_a_packed_convolution_equals_torchs_for_images_of_any_shape(layer):
    shapes = [(1, 6, 8, 8), (5, 6, 8, 8), (2, 6, 13, 9)]
    packed = fast_network(nn.Sequential(layer).eval(), [torch.zeros(shapes[0])], CPU)
    assert type(packed[0]) is not type(layer)
    with torch.inference_mode():
        for shape in shapes:
            images = torch.randn(shape)
            torch.testing.assert_close(packed(images), layer(images), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not computes_bf16(CPU), reason="nothing is packed where bfloat16 isn't native")
def test_a_packed_convolution_in_bfloat16_rounds_like_torchs():
    layer = nn.Conv2d(16, 32, 3, padding=1)
    images = torch.randn(4, 16, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    packed = fast_network(nn.Sequential(layer).eval(), [images], CPU, torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(images), layer.to(torch.bfloat16)(images))


def test_convolutions_are_not_packed_where_bfloat16_is_emulated(monkeypatch):
    monkeypatch.setattr(fuse, "computes_bf16", lambda device: False)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    network = fast_network(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [images], CPU, torch.bfloat16)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, 3, padding="same"), nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect")], ids=str
)
def test_convolutions_with_other_padding_are_kept(layer):
    images = torch.randn(2, 6, 8, 8)
    kept = fast_network(nn.Sequential(layer).eval(), [images], CPU)
    with torch.inference_mode():
        torch.testing.assert_close(kept(images), layer(images), rtol=1e-5, atol=1e-5)


def test_batch_norms_fold_in_evaluation_mode_only():
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("size", [32, 80, 224])
def test_pools_of_a_googlenet_are_replaced_without_changing_its_answers(size):
    """Pools on odd sides, of which 80 px has some, and 2x2 pools are kept."""
    network = build_googlenet(2, auxiliary=False).eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, size, size).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = network(images)
        replace_pools(network, [images])
        assert torch.equal(network(images), before)
    assert sum(isinstance(module, ReluMaxPool2d) for module in network.modules()) >= 9
