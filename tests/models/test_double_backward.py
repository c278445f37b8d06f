"""The critic's layers against torch's: values, both derivatives, and what they refuse."""

import threading
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raygan.models.double_backward import Conv2d, InstanceNorm2d, LeakyReLU, no_weight_gradients, use_on_gpu

#: Channels in and out, kernel, stride, padding, dilation, groups.
CONVOLUTIONS = {
    "convolution": (5, 6, 3, 1, 1),
    "pointwise": (5, 6, 1),
    "strided": (5, 4, 4, 2, 1),
    "grouped": (5, 10, 3, 1, 1, 1, 5),
}


def pair(layer):
    """Torch's layer and ours, with the same parameters."""
    if layer == "norm":
        theirs, ours = nn.InstanceNorm2d(5, affine=True), InstanceNorm2d(5)
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours.load_state_dict(theirs.state_dict())
        return theirs.double(), ours.double()
    if layer in CONVOLUTIONS:
        theirs, ours = nn.Conv2d(*CONVOLUTIONS[layer]), Conv2d(*CONVOLUTIONS[layer])
        ours.load_state_dict(theirs.state_dict())
        return theirs.double(), ours.double()
    return nn.LeakyReLU(0.2), LeakyReLU(0.2)


def images(seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(3, 5, 4, 6, generator=random, dtype=dtype)


@pytest.mark.parametrize("layer", ["norm", "bend", *CONVOLUTIONS])
def test_values_and_both_derivatives_equal_torchs(layer):
    def derivatives(network):
        values = images().requires_grad_()
        parameters = list(network.parameters())
        out = network(values)
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).requires_grad_()
        first = torch.autograd.grad(out, [values, *parameters], weights, create_graph=True)
        # All first derivatives count in the penalty, those of the parameters too.
        penalty = sum((part.square() * (2 + part.sin())).sum() for part in first)
        return [out, *first, *torch.autograd.grad(penalty, [values, weights, *parameters[:1]], allow_unused=True)]

    ours, theirs = (derivatives(network) for network in pair(layer)[::-1])
    for mine, torchs in zip(ours, theirs, strict=True):
        if mine is None:  # where torch passes on zeros
            assert not torchs.any()
        else:
            torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-9)


def test_the_second_derivative_of_a_stack_equals_finite_differences():
    network = nn.Sequential(pair("norm")[1], LeakyReLU(0.2))

    def gradient(values, scale):
        out = torch.func.functional_call(network, {"0.weight": scale}, values)
        (back,) = torch.autograd.grad(out.square().sum(), values, create_graph=True)
        return back

    scale = torch.tensor([1.0, -0.5, 0.0, 2.0, 1e-3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gradient, (images().requires_grad_(), scale))


def test_the_second_derivative_of_a_leaky_relu_is_none_rather_than_zeros():
    values, weights = images().requires_grad_(), images(1).requires_grad_()
    (first,) = torch.autograd.grad(LeakyReLU(0.2)(values), values, weights, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), [values], allow_unused=True) == (None,)


class Count(TorchDispatchMode):
    """Counts the operations that are dispatched, by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_penalty_takes_one_gradient_of_each_layers_weights_and_none_of_what_it_does_not_depend_on(frozen):
    """Piecewise linear layers have no second derivative by their values, so nothing is passed on to the images."""
    layers = nn.ModuleList(Conv2d(5, 5, 3, padding=1).double() for _ in range(4))
    layers[:frozen].requires_grad_(False)
    network = nn.Sequential(*(part for layer in layers for part in (layer, LeakyReLU(0.2))))
    values = images().requires_grad_()
    with no_weight_gradients():
        (first,) = torch.autograd.grad(network(values).sum(), values, create_graph=True)
    with Count() as count:
        first.square().sum().backward()
    assert count.calls["convolution_backward"] == 4 - frozen
    assert [layer.weight.grad is None for layer in layers] == [number < frozen for number in range(4)]


def test_a_norm_without_a_gradient_passes_none_on():
    norm, values = pair("norm")[1], images().requires_grad_()
    with Count() as count:
        first = torch.autograd.grad(LeakyReLU(0.2)(norm(values)).sum(), values, create_graph=True)
        torch.autograd.grad(first[0].square().sum(), values)
    assert count.calls["native_group_norm_backward"] == 1


def test_weights_have_no_gradient_where_only_the_images_is_asked_for():
    layer, values = Conv2d(5, 6, 3).double(), images().requires_grad_()
    with no_weight_gradients():
        layer(values).sum().backward()
        score = layer(values).sum()
        # As autograd runs the backward passes of a GPU.
        thread = threading.Thread(target=score.backward)
        thread.start()
        thread.join()
    assert values.grad is not None
    assert layer.weight.grad is None
    layer(values).sum().backward()
    assert layer.weight.grad is not None


def test_a_gpus_critic_takes_over_the_convolutions_that_it_computes_alike():
    plain = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=2, groups=2, bias=False)]
    others = [
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1),
        nn.Conv2d(4, 4, 3, padding=(0, 1)),
    ]
    critic = nn.Sequential(*plain, *others).double()
    values = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted = critic(values)
    use_on_gpu(critic)
    assert [type(layer) for layer in critic] == [Conv2d] * 2 + [nn.Conv2d] * 5
    torch.testing.assert_close(critic(values), wanted)


def test_a_convolution_follows_autocast():
    layer, values = Conv2d(5, 6, 3), images(dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(values)
    assert out.dtype == torch.bfloat16
    (first,) = torch.autograd.grad(out.float().sum(), values, create_graph=True)
    first.square().sum().backward()
    assert first.dtype == layer.weight.grad.dtype == torch.float32


def test_half_precision_is_normalized_in_single_precision():
    theirs, ours = pair("norm")
    values = images(dtype=torch.float32).bfloat16()
    out = ours.float()(values)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), theirs(values.double()), rtol=2**-8, atol=2**-8)


def test_a_third_derivative_is_refused():
    values = images().requires_grad_()
    (first,) = torch.autograd.grad(pair("norm")[1](values).square().sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()
