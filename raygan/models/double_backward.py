"""Layers with fast second derivatives, for critics with a gradient penalty.

A gradient penalty is a function of the critic's gradient, so training differentiates that gradient again. In torch,
each LeakyReLU then passes on a tensor of zeros, with which all layers before it compute as usual; a norm's backward
pass is differentiated operation by operation, in a dozen passes over images and temporaries; and a convolution's
weights get their gradient from a convolution whose kernels are whole images, which oneDNN computes slowly and, in
bfloat16 with kernels of 32x32 px, not at all: the process dies of a division by zero (torch 2.14). All these second
derivatives have a closed form. Values and parameters are those of the torch layers that these replace.

`torch.native_group_norm` and `torch.ops.aten` are the kernels behind torch's layers, without a stable interface. The
public way to them is `torch.autograd.grad` through `functional.group_norm`, `leaky_relu` and `conv2d`, which would
repeat each forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeakyReLU(nn.LeakyReLU):
    """`torch.nn.LeakyReLU` with a positive slope, whose second derivative is zero wherever it exists."""

    def forward(self, values: Tensor) -> Tensor:
        bent: Tensor = _Bend.apply(values, self.negative_slope)
        return bent


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with scale and shift, without running statistics, on (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, values: Tensor) -> Tensor:
        # Sums over an image need more than half precision; torch's autocast treats group norms the same.
        wide = values.to(self.weight.dtype)
        normal: Tensor = _Normalize.apply(wide.contiguous(), self.weight, self.bias, self.eps)
        return normal.to(values.dtype)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with zero padding and without dilation."""

    def forward(self, values: Tensor) -> Tensor:
        padding = cast("tuple[int, ...]", self.padding)
        return convolve(values, self.weight, self.bias, self.stride[0], padding[0], self.groups)


def use_on_gpu(critic: nn.Module) -> None:
    """Turn torch's convolutions of a critic into a `Conv2d` where that computes the same, in place.

    For the second derivative on the weights, a GPU is much slower with torch's convolution. A CPU may be either way, by
    the number of channels.
    """
    for layer in critic.modules():
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        if layer.dilation == (1, 1) and len({*layer.stride}) == len({*layer.padding}) == 1:
            layer.__class__ = Conv2d


def convolve(
    values: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """`torch.nn.functional.conv2d`, also under autocast."""
    device = values.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, weight, bias = values.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    convolved: Tensor = _Convolve.apply(values, weight, bias, stride, padding, groups)
    return convolved


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """A block in which this process's backward passes through `convolve` leave out weights and biases.

    Autograd tells its own layers which gradients were asked for, but not a `torch.autograd.Function`. A GPU's backward
    passes run in a thread of autograd's, which sees neither context variables nor thread-local ones of the caller.
    """
    _skipping.append(True)
    try:
        yield
    finally:
        _skipping.pop()


#: Not empty within `no_weight_gradients`.
_skipping: list[bool] = []


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.shape = stride, padding, groups
        ctx.set_materialize_grads(False)
        return nn.functional.conv2d(values, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:  # by default it would be zeros, and cost as much as any other
            return (None,) * 6
        wanted = list(ctx.needs_input_grad[:3])
        if _skipping:
            wanted[1:] = False, False
        return *_ConvolveBackward.apply(gradient, *ctx.saved_tensors, ctx.shape, wanted), None, None, None


class _ConvolveBackward(torch.autograd.Function):
    """For y's gradient g, the gradients on values and weights, each linear in g and in the other, and on the bias."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, values: Tensor, weight: Tensor, shape: tuple[int, int, int], wanted: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(gradient, values, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return _convolution_backward(gradient, values, weight, shape, wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, on_values: Tensor | None, on_weight: Tensor | None, on_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, values, weight = ctx.saved_tensors
        stride, padding, groups = ctx.shape
        to_gradient = to_values = to_weight = None
        if on_values is not None:
            to_gradient = nn.functional.conv2d(on_values, weight, None, stride, padding, groups=groups)
            if ctx.needs_input_grad[2]:  # unless the stage is frozen
                to_weight = _convolution_backward(gradient, on_values, weight, ctx.shape, [False, True, False])[1]
        if on_weight is not None:
            more = nn.functional.conv2d(values, on_weight, None, stride, padding, groups=groups)
            to_gradient = more if to_gradient is None else to_gradient + more
            to_values = _convolution_backward(gradient, values, on_weight, ctx.shape, [True, False, False])[0]
        if on_bias is not None:
            flat = on_bias[:, None, None].expand_as(gradient)
            to_gradient = flat if to_gradient is None else to_gradient + flat
        return to_gradient, to_values, to_weight, None, None


def _convolution_backward(
    gradient: Tensor, values: Tensor, weight: Tensor, shape: tuple[int, int, int], wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """A convolution's gradients on values, weights and bias; None for those that are not wanted."""
    stride, padding, groups = shape
    sizes = [len(weight)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(gradient, values, weight, *sizes, wanted)
    return found


class _Bend(torch.autograd.Function):
    """values where signs are positive, slope * values elsewhere. It is linear in the values, so its own derivative.

    signs: by default, those of the values.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: float, signs: Tensor | None = None) -> Tensor:
        bent: Tensor
        if signs is None:
            bent = nn.functional.leaky_relu(values, slope)
            signs = bent  # has the same signs, and the next convolution keeps it in memory anyway
        else:
            bent = torch.ops.aten.leaky_relu_backward(values, signs, slope, True)
        ctx.save_for_backward(signs)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return bent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        back = None if gradient is None else _Bend.apply(gradient, ctx.slope, *ctx.saved_tensors)
        return back, None, None


class _Normalize(torch.autograd.Function):
    """y = scale * n + shift with n = (x - mean) / deviation, for each channel of each image."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normal: Tensor
        # A group norm with one channel per group: five times as fast as torch's instance norm on AVX2.
        normal, mean, inverse = torch.native_group_norm(values, scale, shift, *_groups(values), eps)
        ctx.save_for_backward(values, scale, mean, inverse)
        ctx.set_materialize_grads(False)
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 4
        return *_NormalizeBackward.apply(gradient, *ctx.saved_tensors), None


class _NormalizeBackward(torch.autograd.Function):
    """For y's gradient g, the gradients scale / deviation * P g on x, and the sums of n g and g on scale and shift.

    P g = g - mean(g) - n mean(n g) is the part of g that changes neither mean nor deviation. P is symmetric, and the
    derivative of n by x is P / deviation. So a gradient v on the first result gives

        on g:     scale / deviation * P v
        on x:    -scale / deviation**2 * (mean(n v) P g + mean(n g) P v + mean(v P g) n)
        on scale: the sum of v P g / deviation
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, values: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gradient, values, scale, mean, inverse)
        ctx.set_materialize_grads(False)
        back: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(), values, mean, inverse, scale, *_groups(values), [True, True, True]
        )
        return back

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, on_scale: Tensor | None, on_shift: Tensor | None) -> tuple[Any, ...]:
        g, x, scale, mean, inverse = ctx.saved_tensors
        v = torch.zeros_like(g) if v is None else v
        scale, mean, inverse = scale[:, None, None], mean[..., None, None], inverse[..., None, None]
        mean_g, mean_v = _mean(g), _mean(v)
        n_g = inverse * (_mean(g * x) - mean * mean_g)
        n_v = inverse * (_mean(v * x) - mean * mean_v)
        inner = _mean(v * g) - mean_v * mean_g - n_v * n_g
        share = scale * inverse
        on_n = -share * n_v if on_scale is None else on_scale[:, None, None] - share * n_v
        for_g, for_v = inverse * on_n, -inverse * share * n_g
        for_n = -inverse * share * inner - for_g * n_g - for_v * n_v
        shift = 0 if on_shift is None else on_shift[:, None, None]
        # n = inverse * x - inverse * mean, which never exists as a tensor.
        to_g = _combine(shift - share * mean_v - on_n * inverse * mean, (share, v), (on_n * inverse, x))
        rest = -for_g * mean_g - for_v * mean_v - for_n * inverse * mean
        to_x = _combine(rest, (for_g, g), (for_v, v), (for_n * inverse, x))
        to_scale = (inverse * inner).sum((0, 2, 3)) * (x.shape[2] * x.shape[3])
        return to_g, to_x, to_scale, None, None


def _groups(values: Tensor) -> tuple[int, int, int, int]:
    count, channels, height, width = values.shape
    return count, channels, height * width, channels


def _mean(values: Tensor) -> Tensor:
    return values.mean((2, 3), keepdim=True)


def _combine(constant: Tensor, first: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor]) -> Tensor:
    """A constant plus the sum of factors (N, C, 1, 1) times tensors (N, C, H, W)."""
    total = first[0] * first[1]
    for factor, values in others:
        total.addcmul_(values, factor)
    return total.add_(constant)
