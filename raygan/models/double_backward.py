"""Layers with fast second derivatives, for critics with a gradient penalty.

A gradient penalty is a function of the critic's gradient, so training differentiates that gradient again. In torch,
each LeakyReLU then passes on a tensor of zeros, with which all layers before it compute as usual; and a norm's backward
pass is differentiated operation by operation, in a dozen passes over images and temporaries. Both second derivatives
have a closed form. Values and parameters are those of the torch layers that these replace.

`torch.native_group_norm` and `torch.ops.aten` are the kernels behind torch's layers, without a stable interface. The
public way to them is `torch.autograd.grad` through `functional.group_norm` and `functional.leaky_relu`, which would
repeat each forward pass.
"""

from __future__ import annotations

from typing import Any

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
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
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
